/*
 * What PMDK's map examples expect of their own tree's ex_common.h.
 */
#ifndef EX_COMMON_H
#define EX_COMMON_H

#include <sys/stat.h>
#include <unistd.h>

#define CREATE_MODE_RW (S_IWUSR | S_IRUSR)

static inline int file_exists(const char *path)
{
	return access(path, F_OK);
}

#endif
