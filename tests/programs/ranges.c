/*
 * A program whose memory is used as a plan says, 2 MiB range by range: what large pages and reclaim are tested with.
 *
 *   ranges KIND PLAN        KIND: anon, memfd, or a directory for a file
 *
 * PLAN has a letter for each range:
 *   D  dense and hot: every page is read, all the time
 *   S  sparse and hot: 8 pages are read, all the time
 *   W  dense and hot, and one page of it is written in each round
 *   F  dense and hot, and every page is written
 *   C  cold: read now and then
 *   -  never touched again after the start
 * It says "base ADDRESS", then does what lines of its input say:
 *   plan PLAN   goes on by another plan; says "ok"
 *   once        touches each page of the plan once, 'C' left out; says "ok"
 *   run MS      reads at random for so long in time of a processor, each read waiting for the last one; says "ops NUMBER"
 *   pass        reads each page of the plan once, and says "pass MICROSECONDS"
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define RANGE (2UL << 20)
#define PAGE 4096UL
#define PAGES 512
#define SPARSE 8

static volatile unsigned char *base;
static uint32_t *order;
static size_t places;
static size_t ranges;

static uint64_t chance = 88172645463325252ULL;

static uint64_t next(void) {
    chance ^= chance << 13;
    chance ^= chance >> 7;
    return chance ^= chance << 17;
}

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static int backing(const char *kind) {
    if (strcmp(kind, "memfd") == 0)
        return memfd_create("ranges", 0);
    return open(kind, O_TMPFILE | O_RDWR, 0600);
}

static void map(const char *kind) {
    size_t len = ranges * RANGE;
    unsigned char *room = mmap(NULL, len + RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED)
        die("mmap");
    unsigned char *at = (unsigned char *)(((uintptr_t)room + RANGE - 1) & ~(RANGE - 1));
    int fd = -1, flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS;
    if (strcmp(kind, "anon") != 0) {
        fd = backing(kind);
        if (fd < 0 || ftruncate(fd, (off_t)len) != 0)
            die(kind);
        flags = MAP_FIXED | MAP_SHARED;
    }
    base = mmap(at, len, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (base == MAP_FAILED)
        die("mmap");
    /* Small pages to begin with, also where the kernel maps all memory large by itself. */
    if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0)
        die("PR_SET_THP_DISABLE");
    for (size_t page = 0; page < len / PAGE; page++)
        *(volatile uint64_t *)(base + page * PAGE) = page + 1;
    if (prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0) != 0)
        die("PR_SET_THP_DISABLE");
}

/* Lists the places of a plan, in a random order; sparse ones are named as often as dense ones. */
static void follow(const char *plan) {
    places = 0;
    for (size_t range = 0; range < ranges && plan[range]; range++) {
        char c = plan[range];
        size_t pages = c == 'S' ? SPARSE : c == 'C' ? 4 : c == '-' ? 0 : PAGES;
        size_t times = c == 'S' ? 16 : 1;
        for (size_t page = 0; page < pages; page++)
            for (size_t t = 0; t < times; t++) {
                size_t which = c == 'C' ? next() % PAGES : page;
                order[places++] = (uint32_t)(range * PAGES + which);
            }
    }
    for (size_t i = places; i > 1; i--) {
        size_t j = next() % i;
        uint32_t swap = order[i - 1];
        order[i - 1] = order[j];
        order[j] = swap;
    }
}

/*
 * Has the processor forget the translations that it remembers. Uses that it makes by these set no access bit: who cleared the bits did not
 * have them forgotten. The kernel forgets all when it unmaps more than a few pages.
 */
static void forget(void) {
    size_t len = 256 * PAGE;
    unsigned char *at = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (at == MAP_FAILED || munmap(at, len) != 0)
        die("mmap");
}

static void touch_once(const char *plan) {
    for (size_t range = 0; range < ranges && plan[range]; range++) {
        char c = plan[range];
        size_t pages = c == 'S' ? SPARSE : c == '-' || c == 'C' ? 0 : PAGES;
        for (size_t page = 0; page < pages; page++) {
            volatile unsigned char *at = base + (range * PAGES + page) * PAGE;
            (void)*at;
            if (c == 'F' || (c == 'W' && page == 7))
                at[64]++;
        }
    }
}

static uint64_t run(double seconds) {
    double end = now(CLOCK_PROCESS_CPUTIME_ID) + seconds;
    uint64_t ops = 0, seen = 0;
    while (places && now(CLOCK_PROCESS_CPUTIME_ID) < end) {
        for (int i = 0; i < 2048; i++) {
            uint64_t r = next() + seen;
            size_t place = order[((r & 0xffffffff) * places) >> 32];
            /* The pages' other lines are zero, so what is read changes nothing but makes the next read wait for it. */
            seen = base[place * PAGE + 64 * (1 + (r >> 40) % 63) + 8] & 0x80;
        }
        ops += 2048;
    }
    return ops;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: ranges KIND PLAN\n");
        return 64;
    }
    ranges = strlen(argv[2]);
    char *plan = strdup(argv[2]);
    order = malloc(ranges * PAGES * sizeof *order + 1);
    if (!plan || !order)
        die("malloc");
    map(argv[1]);
    follow(plan);
    printf("base %lx\n", (unsigned long)(uintptr_t)base);
    fflush(stdout);
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, stdin) > 0) {
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line, "plan ", 5) == 0 && strlen(line + 5) == ranges) {
            strcpy(plan, line + 5);
            follow(plan);
            printf("ok\n");
        } else if (strcmp(line, "once") == 0) {
            forget();
            touch_once(plan);
            printf("ok\n");
        } else if (strncmp(line, "run ", 4) == 0) {
            printf("ops %lu\n", (unsigned long)run(atof(line + 4) / 1e3));
        } else if (strcmp(line, "pass") == 0) {
            double begin = now(CLOCK_MONOTONIC);
            touch_once(plan);
            printf("pass %.0f\n", (now(CLOCK_MONOTONIC) - begin) * 1e6);
        } else {
            printf("what? %s\n", line);
        }
        fflush(stdout);
    }
    return 0;
}
