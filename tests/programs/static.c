/*
 * Writes bytes into a file: `static FILE OFFSET BYTES`. Linked statically, so that no preload library is in it.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int
main(int argc, char **argv)
{
	if (argc != 4) {
		fprintf(stderr, "usage: static FILE OFFSET BYTES\n");
		return 2;
	}
	long offset = atol(argv[2]);
	size_t bytes = (size_t)atol(argv[3]);
	char *what = malloc(bytes);
	int fd = open(argv[1], O_RDWR);
	if (what == NULL || fd < 0) {
		perror(argv[1]);
		return 1;
	}
	memset(what, 's', bytes);
	if (pwrite(fd, what, bytes, offset) != (ssize_t)bytes || fsync(fd) != 0) {
		perror("pwrite");
		return 1;
	}
	return 0;
}
