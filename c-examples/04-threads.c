/*
 * 04-threads: many threads, one session. Each thread persists a counter of its own and depends on nobody's drain but its
 * own; what it drained is durable for all of them in one order.
 */
#include "example.h"

#include <pthread.h>

#define THREADS 4
#define ROUNDS 500
#define SIZE (1 << 16)

struct worker {
	pthread_t thread;
	struct pmemha_session *session;
	struct pmemha_region *region;
	uint64_t *counter;
	uint64_t lsn;
};

static void *
work(void *arg)
{
	struct worker *me = arg;
	for (uint64_t i = 1; i <= ROUNDS; i++) {
		*me->counter = i;
		MUST(pmemha_flush(me->region, me->counter, sizeof *me->counter));
		MUST(pmemha_drain(me->session, &me->lsn));
	}
	return NULL;
}

int
main(int argc, char *argv[])
{
	char *memory = map_file(file_argument(argc, argv), SIZE);
	struct pmemha_session *session;
	struct pmemha_region *region;
	struct worker workers[THREADS];

	MUST(pmemha_open(NULL, NULL, &session));
	MUST(pmemha_protect_range(session, memory, SIZE, &region));
	for (int i = 0; i < THREADS; i++) {
		/* A cache line each, as in any program that cares for speed. */
		workers[i] = (struct worker){
			.session = session, .region = region, .counter = (uint64_t *)(memory + 64 * i)
		};
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) {
			perror("pthread_create");
			return 1;
		}
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(workers[i].thread, NULL);
		MUST(pmemha_wait(session, workers[i].lsn, PMEMHA_LEVEL_DURABLE, 60000));
	}
	printf("%d threads, %d drains each\n", THREADS, ROUNDS);

	MUST(pmemha_close(&session));
	munmap(memory, SIZE);
	return 0;
}
