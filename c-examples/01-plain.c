/*
 * 01-plain: the least that a program does to protect its persistent memory: map a file, protect the mapping, and
 * call pmemha_flush and pmemha_drain where it called pmem_flush and pmem_drain.
 */
#include "example.h"

#define SIZE (1 << 20)

int
main(int argc, char *argv[])
{
	char *memory = map_file(file_argument(argc, argv), SIZE);
	struct pmemha_session *session;
	struct pmemha_region *region;
	uint64_t lsn;

	MUST(pmemha_check_version(PMEMHA_MAJOR_VERSION, PMEMHA_MINOR_VERSION));
	MUST(pmemha_open(NULL, NULL, &session));
	MUST(pmemha_protect_range(session, memory, SIZE, &region));

	strcpy(memory, "hello from the other machine");
	MUST(pmemha_flush(region, memory, strlen(memory) + 1));
	MUST(pmemha_drain(session, &lsn));

	/* The bytes are persistent here. Now be sure that they survive the loss of this machine. */
	MUST(pmemha_wait(session, lsn, PMEMHA_LEVEL_DURABLE, 30000));
	printf("durable up to LSN %llu\n", (unsigned long long)lsn);

	MUST(pmemha_close(&session));
	munmap(memory, SIZE);
	return 0;
}
