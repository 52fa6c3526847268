/*
 * 08-append: a file protected by its path, for programs that flush by means of their own. pmemha_append comes before the
 * program's flush (here msync), pmemha_drain after it.
 */
#include "example.h"

#define SIZE (1 << 16)
#define PAGE 4096

int
main(int argc, char *argv[])
{
	const char *path = file_argument(argc, argv);
	char *memory = map_file(path, SIZE);
	struct pmemha_session *session;
	struct pmemha_region *region;
	uint64_t lsn;

	MUST(pmemha_open(NULL, NULL, &session));
	MUST(pmemha_protect_path(session, path, 0, &region));

	strcpy(memory + PAGE, "flushed by the program itself");
	MUST(pmemha_append(region, PAGE, memory + PAGE, strlen(memory + PAGE) + 1));
	if (msync(memory + PAGE, PAGE, MS_SYNC) != 0) {
		perror("msync");
		return 1;
	}
	MUST(pmemha_drain(session, &lsn));
	MUST(pmemha_wait(session, lsn, PMEMHA_LEVEL_DURABLE, 30000));
	printf("durable up to LSN %llu\n", (unsigned long long)lsn);

	MUST(pmemha_close(&session));
	munmap(memory, SIZE);
	return 0;
}
