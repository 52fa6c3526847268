/*
 * workload run MODE POOL ACKS COUNT [SEED]     create POOL and ACKS and work
 * workload go-on MODE POOL ACKS COUNT [SEED]   the same, or check what is there and go on where it ends
 * workload check MODE POOL ACKS                check one state
 * workload check-many MODE                     check states named on stdin, a line "POOL ACKS" each;
 *                                              answers a line "ok FOUND…" (a number a thread) or
 *                                              "bad REASON" each
 *
 * `run` prints "ready" once the pool is set up and then "ack N" at every 100th operation. In its environment:
 *
 *     WORKLOAD_POOL_MIB        size of a libpmemobj pool, instead of the mode's own
 *     WORKLOAD_PAUSE_US        pause after each operation, in microseconds
 *     WORKLOAD_CLOCK=FILE@AT   a word at byte AT of FILE that others change, and
 *     WORKLOAD_WITNESS=FILE    where to note, as a struct testimony, what it said when an operation had returned
 */
#include "workload.h"

#include <fcntl.h>
#include <libpmem.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct mode *const modes[] = {
	&mode_tx, &mode_atomic, &mode_memcpy, &mode_huge, &mode_raw, &mode_pmem2, &mode_threads,
};

static unsigned pause_us;
static const volatile uint64_t *clock_word;
static int witness = -1;

struct testimony {
	uint64_t thread;
	uint64_t n;
	uint64_t clock;
};

static void open_witness(void)
{
	char path[4096];
	unsigned long at;
	const char *clock = getenv("WORKLOAD_CLOCK"), *notes = getenv("WORKLOAD_WITNESS");
	if (clock == NULL || notes == NULL)
		return;
	if (sscanf(clock, "%4095[^@]@%lu", path, &at) != 2) {
		fprintf(stderr, "workload: WORKLOAD_CLOCK is not FILE@AT\n");
		exit(2);
	}
	int fd = open(path, O_RDONLY);
	const char *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, (off_t)(at & ~4095UL));
	if (fd < 0 || page == MAP_FAILED)
		die(path);
	close(fd);
	clock_word = (const volatile uint64_t *)(page + (at & 4095));
	witness = open(notes, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (witness < 0)
		die(notes);
}

void acknowledge(struct job *job, unsigned thread, uint64_t n)
{
	if (clock_word != NULL) {
		struct testimony note = {thread, n, *clock_word};
		if (write(witness, &note, sizeof(note)) != sizeof(note))
			die("the witness");
	}
	job->acks->thread[thread].done = n;
	pmem_persist(&job->acks->thread[thread], sizeof(job->acks->thread[thread]));
	if (thread == 0 && n % 100 == 0) {
		printf("ack %lu\n", (unsigned long)n);
		fflush(stdout);
	}
	if (pause_us > 0)
		usleep(pause_us);
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
			     uint64_t found[MAX_THREADS])
{
	static char reason[256];
	struct acks none = {0};
	struct stat st;
	/* before the acks file was created nothing can have been acknowledged */
	int have = stat(acks_path, &st) == 0 && st.st_size >= (off_t)sizeof(none);
	struct job job = {.pool = pool, .acks = have ? map_acks(acks_path, 0) : &none, .threads = mode->threads};
	const char *wrong = mode->check(&job, found);

	for (unsigned t = 0; wrong == NULL && t < mode->threads; t++) {
		uint64_t acked = job.acks->thread[t].done;
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
		uint64_t found[MAX_THREADS] = {0};
		if (sscanf(line, "%4095s %4095s", pool, acks) != 2)
			return 2;
		const char *wrong = check_one(mode, pool, acks, found);
		if (wrong != NULL) {
			printf("bad %s\n", wrong);
		} else {
			printf("ok");
			for (unsigned t = 0; t < mode->threads; t++)
				printf(" %lu", (unsigned long)found[t]);
			printf("\n");
		}
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
		uint64_t found[MAX_THREADS] = {0};
		const char *wrong = check_one(find_mode(argv[2]), argv[3], argv[4], found);
		printf(wrong ? "bad %s\n" : "ok\n", wrong);
		return wrong != NULL;
	}
	if (argc < 6 || (strcmp(argv[1], "run") != 0 && strcmp(argv[1], "go-on") != 0)) {
		fprintf(stderr, "usage: workload run MODE POOL ACKS COUNT [SEED]\n"
				"       workload go-on MODE POOL ACKS COUNT [SEED]\n"
				"       workload check MODE POOL ACKS\n"
				"       workload check-many MODE\n");
		return 2;
	}
	const struct mode *mode = find_mode(argv[2]);
	uint64_t found[MAX_THREADS] = {0};
	int resumes = strcmp(argv[1], "go-on") == 0 && access(argv[3], F_OK) == 0;
	if (resumes) {
		const char *wrong = check_one(mode, argv[3], argv[4], found);
		if (wrong) {
			fprintf(stderr, "workload: what was found is bad: %s\n", wrong);
			return 3;
		}
	}
	struct job job = {
		.resumes = resumes,
		.pool = argv[3],
		.acks = map_acks(argv[4], 1),
		.threads = mode->threads,
		.count = strtoull(argv[5], NULL, 10),
		.seed = argc > 6 ? strtoull(argv[6], NULL, 10) : 1,
	};
	open_witness();
	if (getenv("WORKLOAD_PAUSE_US") != NULL)
		pause_us = (unsigned)strtoul(getenv("WORKLOAD_PAUSE_US"), NULL, 10);
	for (unsigned t = 0; t < MAX_THREADS; t++) {
		job.first[t] = found[t] + 1;
		/* one that was cut short before it could be acknowledged is, now that it was found */
		if (found[t] != job.acks->thread[t].done)
			acknowledge(&job, t, found[t]);
	}
	mode->run(&job);
	printf("done %lu\n", (unsigned long)job.count);
	return 0;
}
