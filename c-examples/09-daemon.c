/*
 * 09-daemon: a program that closes every descriptor that it does not know, as daemons do, and uses the numbers again. Its
 * session goes on: the library neither uses nor closes what is not its own any more, and finds the agent anew.
 */
#include "example.h"

#include <sys/stat.h>

#define SIZE (1 << 16)
#define HIGHEST 1000

int
main(int argc, char *argv[])
{
	const char *path = file_argument(argc, argv);
	uint64_t *memory = map_file(path, SIZE);
	struct pmemha_session *session;
	struct pmemha_region *region;
	struct stat ours, now;
	size_t needed;
	uint64_t lsn;

	MUST(pmemha_open(NULL, NULL, &session));
	MUST(pmemha_protect_range(session, memory, SIZE, &region));

	/* Every number now means the program's own file, that of the library's socket too. */
	int file = open(path, O_RDONLY);
	if (file < 0 || fstat(file, &ours) != 0) {
		perror(path);
		return 1;
	}
	for (int fd = file + 1; fd < HIGHEST; fd++)
		if (dup2(file, fd) != fd) {
			perror("dup2");
			return 1;
		}

	*memory = 1;
	MUST(pmemha_persist(region, memory, sizeof *memory, &lsn));
	MUST(pmemha_wait(session, lsn, PMEMHA_LEVEL_DURABLE, 30000));
	if (pmemha_status_json(session, NULL, 0, &needed) != PMEMHA_E_RANGE) {
		fprintf(stderr, "%s\n", pmemha_errormsg());
		return 1;
	}
	MUST(pmemha_close(&session));

	for (int fd = file; fd < HIGHEST; fd++)
		if (fstat(fd, &now) != 0 || now.st_ino != ours.st_ino) {
			fprintf(stderr, "descriptor %d is not the program's any more\n", fd);
			return 1;
		}
	printf("the agent's status takes %zu bytes\n", needed);
	munmap(memory, SIZE);
	return 0;
}
