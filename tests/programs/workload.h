/*
 * Programs with invariants of their own, that know nothing of pmemha.
 *
 * Every mode has a writer and a checker. The writer does operations 1, 2, 3, … ; an operation that has
 * returned is acknowledged by persisting its number in the acks file, a file of its own. So in any state
 * that the machine could be found in after a power cut, and therefore in every prefix of the log:
 *
 *     acknowledged <= operations found in the pool <= acknowledged + 1        (a thread)
 */
#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_THREADS 8

struct acks {
	struct {
		uint64_t done;
		uint64_t pad[7];
	} thread[MAX_THREADS];
};

struct job {
	const char *pool;
	struct acks *acks;
	unsigned threads;
	int resumes;	/* the pool is there and has passed its check */
	uint64_t first[MAX_THREADS]; /* number of each thread's first operation */
	uint64_t count;	/* number of its last one */
	uint64_t seed;
};

struct mode {
	const char *name;
	unsigned threads;
	void (*run)(struct job *job);
	/* fills found[thread]; returns NULL or what is wrong */
	const char *(*check)(struct job *job, uint64_t *found);
};

extern const struct mode mode_tx, mode_atomic, mode_memcpy, mode_huge, mode_raw, mode_pmem2, mode_threads;

/* persists that the thread's operation `n` has returned */
void acknowledge(struct job *job, unsigned thread, uint64_t n);

/* a 64-bit mix, for contents that a checker can compute again */
static inline uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdULL;
	x ^= x >> 33;
	x *= 0xc4ceb9fe1a85ec53ULL;
	return x ^ (x >> 33);
}

static inline void die(const char *what)
{
	perror(what);
	exit(2);
}

#endif
