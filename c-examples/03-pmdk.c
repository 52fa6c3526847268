/*
 * 03-pmdk: a libpmemobj pool whose root object the program changes itself. The pool is made first and protected as it is;
 * from then on pmemha_persist stands where pmemobj_persist stood. Programs that let libpmemobj change the pool
 * (transactions, allocations) need no line of this: they run under libpmemha_preload.so.
 */
#include "example.h"

#include <libpmemobj.h>
#include <sys/stat.h>

struct root {
	uint64_t entries;
	char log[64][56];
};

int
main(int argc, char *argv[])
{
	const char *path = file_argument(argc, argv);
	PMEMobjpool *pool = pmemobj_create(path, "example", PMEMOBJ_MIN_POOL, 0600);
	if (pool == NULL) {
		fprintf(stderr, "%s: %s\n", path, pmemobj_errormsg());
		return 1;
	}
	/* Allocated before the pool is protected, so that it is part of what the destination starts from. */
	struct root *root = pmemobj_direct(pmemobj_root(pool, sizeof(struct root)));

	struct pmemha_session *session;
	struct pmemha_region *region;
	uint64_t lsn = 0;
	struct stat st;
	if (stat(path, &st) != 0) {
		perror(path);
		return 1;
	}
	MUST(pmemha_open(NULL, NULL, &session));
	MUST(pmemha_protect_range(session, pool, (size_t)st.st_size, &region));

	for (uint64_t i = 0; i < 64; i++) {
		snprintf(root->log[i], sizeof root->log[i], "entry %llu", (unsigned long long)i);
		MUST(pmemha_persist(region, root->log[i], sizeof root->log[i], NULL));
		/* The entry is ordered before the count that makes it valid: on any machine. */
		root->entries = i + 1;
		MUST(pmemha_persist(region, &root->entries, sizeof root->entries, &lsn));
	}
	MUST(pmemha_wait(session, lsn, PMEMHA_LEVEL_DURABLE, 30000));
	printf("%llu entries are durable\n", (unsigned long long)root->entries);

	MUST(pmemha_close(&session));
	pmemobj_close(pool);
	return 0;
}
