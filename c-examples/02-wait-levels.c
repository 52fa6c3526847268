/*
 * 02-wait-levels: how far a record has come. Waits for each level in turn, then prints what pmemha_status tells.
 */
#include "example.h"

#define SIZE (1 << 16)

int
main(int argc, char *argv[])
{
	static const char *const names[] = { "local", "received", "durable", "applied" };
	uint64_t *counter = map_file(file_argument(argc, argv), SIZE);
	struct pmemha_session *session;
	struct pmemha_region *region;
	struct pmemha_info info;
	uint64_t lsn;

	MUST(pmemha_open(NULL, NULL, &session));
	MUST(pmemha_protect_range(session, counter, SIZE, &region));
	for (int level = PMEMHA_LEVEL_LOCAL; level <= PMEMHA_LEVEL_APPLIED; level++) {
		*counter += 1;
		/* Flush and drain in one. */
		MUST(pmemha_persist(region, counter, sizeof *counter, &lsn));
		MUST(pmemha_wait(session, lsn, level, 30000));
		printf("%s: LSN %llu\n", names[level], (unsigned long long)lsn);
	}

	MUST(pmemha_status(session, &info, sizeof info));
	printf("published %llu received %llu durable %llu applied %llu, generation %u, %s\n",
	       (unsigned long long)info.published, (unsigned long long)info.received,
	       (unsigned long long)info.durable, (unsigned long long)info.applied, info.generation,
	       info.link == PMEMHA_LINK_COUNTING ? "protected" : "not protected");

	MUST(pmemha_close(&session));
	munmap(counter, SIZE);
	return 0;
}
