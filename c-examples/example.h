/* What every example needs: a status that is not PMEMHA_OK ends it, with the words of the library. */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <fcntl.h>
#include <pmemha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Evaluates a call of the library and exits where it fails. */
#define MUST(call)                                                                       \
	do {                                                                             \
		enum pmemha_rc must_rc = (call);                                         \
		if (must_rc != PMEMHA_OK) {                                              \
			fprintf(stderr, "%s: %s (%s)\n", #call, pmemha_errormsg(),       \
				pmemha_strstatus(must_rc));                              \
			exit(1);                                                         \
		}                                                                        \
	} while (0)

/* Creates `path` with `size` bytes if need be and maps it. Ends the program on failure. */
static inline void *
map_file(const char *path, size_t size)
{
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	if (fd < 0 || ftruncate(fd, (off_t)size) != 0) {
		perror(path);
		exit(1);
	}
	void *addr = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (addr == MAP_FAILED) {
		perror(path);
		exit(1);
	}
	close(fd); /* The mapping is enough, for the library too. */
	return addr;
}

/* The file that the example is to protect: its only argument. */
static inline const char *
file_argument(int argc, char *argv[])
{
	if (argc != 2) {
		fprintf(stderr, "usage: %s FILE\n", argv[0]);
		exit(2);
	}
	return argv[1];
}

#endif
