/*
 * workload run MODE POOL ACKS COUNT [SEED]     create POOL and ACKS and work
 * workload check MODE POOL ACKS                check one state
 * workload check-many MODE                     check states named on stdin, a line "POOL ACKS" each;
 *                                              answers a line "ok FOUND" or "bad REASON" each
 *
 * `run` prints "ready" once the pool is set up and then "ack N" at every 100th operation.
 */
#include "workload.h"

#include <libpmem.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct mode *const modes[] = {
	&mode_tx, &mode_atomic, &mode_memcpy, &mode_huge, &mode_raw, &mode_threads,
};

void acknowledge(struct job *job, unsigned thread, uint64_t n)
{
	job->acks->thread[thread].done = n;
	pmem_persist(&job->acks->thread[thread], sizeof(job->acks->thread[thread]));
	if (thread == 0 && n % 100 == 0) {
		printf("ack %lu\n", (unsigned long)n);
		fflush(stdout);
	}
}

static const struct mode *find_mode(const char *name)
{
	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++)
		if (strcmp(modes[i]->name, name) == 0)
			return modes[i];
	fprintf(stderr, "workload: no mode %s\n", name);
	exit(2);
}

static struct acks *map_acks(const char *path, int create)
{
	size_t len;
	int is_pmem;
	struct acks *acks = pmem_map_file(path, create ? sizeof(struct acks) : 0,
					  create ? PMEM_FILE_CREATE : 0, 0600, &len, &is_pmem);
	if (acks == NULL || len < sizeof(*acks))
		die(path);
	return acks;
}

static const char *check_one(const struct mode *mode, const char *pool, const char *acks_path,
			     uint64_t *total)
{
	static char reason[256];
	uint64_t found[MAX_THREADS] = {0};
	struct acks none = {0};
	struct stat st;
	/* before the acks file was created nothing can have been acknowledged */
	int have = stat(acks_path, &st) == 0 && st.st_size >= (off_t)sizeof(none);
	struct job job = {.pool = pool, .acks = have ? map_acks(acks_path, 0) : &none, .threads = mode->threads};
	const char *wrong = mode->check(&job, found);

	*total = 0;
	for (unsigned t = 0; wrong == NULL && t < mode->threads; t++) {
		uint64_t acked = job.acks->thread[t].done;
		*total += found[t];
		if (found[t] < acked || found[t] > acked + 1) {
			snprintf(reason, sizeof(reason), "thread %u: %lu acknowledged, %lu found", t,
				 (unsigned long)acked, (unsigned long)found[t]);
			wrong = reason;
		}
	}
	if (have)
		pmem_unmap(job.acks, sizeof(none));
	return wrong;
}

static int check_many(const struct mode *mode)
{
	char line[8192], pool[4096], acks[4096];
	int bad = 0;

	while (fgets(line, sizeof(line), stdin)) {
		uint64_t found;
		if (sscanf(line, "%4095s %4095s", pool, acks) != 2)
			return 2;
		const char *wrong = check_one(mode, pool, acks, &found);
		if (wrong)
			printf("bad %s\n", wrong);
		else
			printf("ok %lu\n", (unsigned long)found);
		bad |= wrong != NULL;
		fflush(stdout);
	}
	return bad;
}

int main(int argc, char **argv)
{
	if (argc == 3 && strcmp(argv[1], "check-many") == 0)
		return check_many(find_mode(argv[2]));
	if (argc == 5 && strcmp(argv[1], "check") == 0) {
		uint64_t found;
		const char *wrong = check_one(find_mode(argv[2]), argv[3], argv[4], &found);
		printf(wrong ? "bad %s\n" : "ok\n", wrong);
		return wrong != NULL;
	}
	if (argc < 6 || strcmp(argv[1], "run") != 0) {
		fprintf(stderr, "usage: workload run MODE POOL ACKS COUNT [SEED]\n"
				"       workload check MODE POOL ACKS\n"
				"       workload check-many MODE\n");
		return 2;
	}
	const struct mode *mode = find_mode(argv[2]);
	struct job job = {
		.pool = argv[3],
		.acks = map_acks(argv[4], 1),
		.threads = mode->threads,
		.count = strtoull(argv[5], NULL, 10),
		.seed = argc > 6 ? strtoull(argv[6], NULL, 10) : 1,
	};
	mode->run(&job);
	printf("done %lu\n", (unsigned long)job.count);
	return 0;
}
