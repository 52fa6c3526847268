/*
 * 07-fork: a child of fork goes on with the handles that it inherited, as a writer of its own. When it closes the session,
 * its parent's stays open.
 */
#include "example.h"

#include <sys/wait.h>

#define SIZE (1 << 16)

int
main(int argc, char *argv[])
{
	uint64_t *memory = map_file(file_argument(argc, argv), SIZE);
	struct pmemha_session *session;
	struct pmemha_region *region;
	uint64_t lsn;

	MUST(pmemha_open(NULL, NULL, &session));
	MUST(pmemha_protect_range(session, memory, SIZE, &region));

	pid_t child = fork();
	if (child < 0) {
		perror("fork");
		return 1;
	}
	if (child == 0) {
		memory[8] = 42;
		MUST(pmemha_persist(region, &memory[8], sizeof memory[8], &lsn));
		MUST(pmemha_wait(session, lsn, PMEMHA_LEVEL_DURABLE, 30000));
		MUST(pmemha_close(&session));
		return 0;
	}
	int status;
	if (waitpid(child, &status, 0) != child || status != 0) {
		fprintf(stderr, "the child failed\n");
		return 1;
	}
	memory[0] = memory[8] + 1;
	MUST(pmemha_persist(region, memory, sizeof *memory, &lsn));
	MUST(pmemha_wait(session, lsn, PMEMHA_LEVEL_DURABLE, 30000));
	printf("child wrote %llu, parent %llu\n", (unsigned long long)memory[8], (unsigned long long)memory[0]);

	MUST(pmemha_close(&session));
	munmap(memory, SIZE);
	return 0;
}
