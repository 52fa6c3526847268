/*
 * Small programs that make bytes durable, each in one way. They know nothing of pmemha.
 *
 *     steps WAY FILE
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <libpmem.h>
#include <libpmem2.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define SIZE (64 * PAGE)

#define CHECK(x) do { if (!(x)) { perror(#x); exit(3); } } while (0)

static const char *path;

static int create(size_t size)
{
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0);
	CHECK(ftruncate(fd, size) == 0);
	return fd;
}

static char *map(int fd, size_t size)
{
	char *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(p != MAP_FAILED);
	return p;
}

static void fill(char *p, size_t len, int seed)
{
	for (size_t i = 0; i < len; i++)
		p[i] = (char)(i * 31 + seed);
}

static char *map_pmem(void)
{
	size_t len;
	int is_pmem;
	char *p = pmem_map_file(path, SIZE, PMEM_FILE_CREATE, 0600, &len, &is_pmem);
	CHECK(p && is_pmem);
	return p;
}

static void flush_and_drain(void)
{
	char *p = map_pmem();
	fill(p + 100, 5000, 1);
	pmem_flush(p + 100, 5000);
	pmem_drain();
	p[20000] = 7;
	pmem_persist(p + 20000, 1);
	p[30000] = 8;
	pmem_deep_persist(p + 30000, 1);
	p[40000] = 9;
	CHECK(pmem_msync(p + 40000, 1) == 0);
}

static void copies(void)
{
	static char from[3 * PAGE];
	char *p = map_pmem();
	fill(from, sizeof(from), 3);
	pmem_memcpy_persist(p + 10, from, 100);
	pmem_memcpy_persist(p + PAGE + 7, from, sizeof(from));
	pmem_memmove_persist(p + PAGE + 60, p + PAGE + 7, 2 * PAGE);
	pmem_memset_persist(p + 10 * PAGE + 3, 0x5a, 2 * PAGE);
	pmem_memcpy_nodrain(p + 20 * PAGE, from, 700);
	pmem_memset_nodrain(p + 21 * PAGE, 1, 70);
	pmem_drain();
	pmem_memcpy(p + 22 * PAGE, from, 4000, PMEM_F_MEM_NONTEMPORAL);
	pmem_memcpy(p + 23 * PAGE, from, 4000, PMEM_F_MEM_TEMPORAL);
	pmem_memcpy(p + 24 * PAGE, from, 4000, PMEM_F_MEM_NOFLUSH);
	pmem_persist(p + 24 * PAGE, 4000);
}

/* Bytes that are copied with NOFLUSH and never flushed: the image must not have them. */
static void noflush(void)
{
	char *p = map_pmem();
	pmem_memset_persist(p, 1, 64);
	pmem_memset(p + PAGE, 2, 64, PMEM_F_MEM_NOFLUSH);
	pmem_drain();
	_exit(0);
}

/* Copied and flushed in every way, and drained in none. */
static void undrained(void)
{
	static char from[PAGE];
	char *p = map_pmem();
	memset(from, 2, sizeof(from));
	pmem_memset_persist(p, 1, 64);
	pmem_memcpy(p + PAGE, from, 64, PMEM_F_MEM_NODRAIN);
	pmem_memcpy(p + 2 * PAGE, from, PAGE, PMEM_F_MEM_NODRAIN);
	pmem_memmove(p + 3 * PAGE, from, PAGE, PMEM_F_MEM_NODRAIN | PMEM_F_MEM_TEMPORAL);
	pmem_memset(p + 4 * PAGE, 2, PAGE, PMEM_F_MEM_NODRAIN);
	pmem_memcpy_nodrain(p + 5 * PAGE, from, PAGE);
	memset(p + 6 * PAGE, 2, PAGE);
	pmem_flush(p + 6 * PAGE, PAGE);
	kill(getpid(), SIGKILL);
}

/* Flush i puts its number into one to five lines, which flushes before and after it number as well. */
static void in_order(void)
{
	char *p = map_pmem();
	for (uint64_t i = 1; i <= 500; i++) {
		char *at = p + i * 7 % 16 * 64;
		size_t lines = 1 + i % 5;
		for (size_t line = 0; line < lines; line++)
			memcpy(at + 64 * line, &i, sizeof(i));
		pmem_flush(at, 64 * lines);
		if (i % 10 == 0)
			pmem_drain();
	}
}

static void private_mapping(void)
{
	int fd = create(SIZE);
	char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHECK(p != MAP_FAILED);
	memset(p, 7, 64);
	pmem_persist(p, 64);
}

/* A private page laid over a shared mapping of the same file hides it. */
static void covered(void)
{
	int fd = create(SIZE);
	char *p = map(fd, SIZE);
	fill(p, 3 * PAGE, 1);
	pmem_persist(p, 3 * PAGE);
	CHECK(mmap(p + PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, PAGE) != MAP_FAILED);
	fill(p, 3 * PAGE, 2);
	pmem_persist(p, 3 * PAGE);
}

/* Copies that begin or end outside of the file's mapping. */
static void straddle(void)
{
	static char from[2 * PAGE];
	int fd = create(SIZE), anonymous = MAP_SHARED | MAP_ANONYMOUS;
	char *p = mmap(NULL, 12 * PAGE, PROT_READ | PROT_WRITE, anonymous, -1, 0);
	CHECK(p != MAP_FAILED);
	CHECK(mmap(p + 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED);
	fill(from, sizeof(from), 5);
	pmem_memcpy_persist(p + 3 * PAGE + 40, from, sizeof(from));
	pmem_memset_persist(p + 4 * PAGE - 10, 6, 100);
	pmem_memmove_persist(p + 7 * PAGE + 70, from, sizeof(from));
	pmem_memset_persist(p + 8 * PAGE - 50, 7, 100);
}

/* Functions found by hand, in a library's handle. */
static void lookup(void)
{
	void *pmem = dlopen("libpmem.so.1", RTLD_NOW | RTLD_LOCAL), *c = dlopen("libc.so.6", RTLD_NOW | RTLD_LOCAL);
	CHECK(pmem && c);
	void (*flush)(const void *, size_t) = (void (*)(const void *, size_t))dlsym(pmem, "pmem_flush");
	void (*drain)(void) = (void (*)(void))dlsym(pmem, "pmem_drain");
	void *(*copy)(void *, const void *, size_t, unsigned) =
		(void *(*)(void *, const void *, size_t, unsigned))dlsym(pmem, "pmem_memcpy");
	ssize_t (*at)(int, const void *, size_t, off_t) = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(c, "pwrite");
	CHECK(flush && drain && copy && at);
	CHECK(dlsym(pmem, "pmem_map_file") && dlerror() == NULL);
	CHECK(dlsym(pmem, "no_such_thing") == NULL && dlerror() != NULL);
	CHECK(dlsym(RTLD_NEXT, "main") == NULL && dlsym(RTLD_DEFAULT, "main") == NULL);
	CHECK(dlsym(RTLD_DEFAULT, "write") == (void *)write && dlsym(RTLD_NEXT, "write") == (void *)write);
	char *p = map_pmem();
	fill(p, 500, 1);
	flush(p, 500);
	drain();
	copy(p + PAGE, p, 500, 0);
	int fd = open(path, O_RDWR);
	CHECK(at(fd, "written", 7, 3 * PAGE) == 7 && fsync(fd) == 0);
}

static char *map_pmem2(struct pmem2_map **map2)
{
	struct pmem2_config *cfg;
	struct pmem2_source *src;
	int fd = create(SIZE);
	CHECK(pmem2_config_new(&cfg) == 0 && pmem2_source_from_fd(&src, fd) == 0);
	CHECK(pmem2_config_set_required_store_granularity(cfg, PMEM2_GRANULARITY_PAGE) == 0);
	CHECK(pmem2_map_new(map2, cfg, src) == 0);
	pmem2_source_delete(&src);
	pmem2_config_delete(&cfg);
	return pmem2_map_get_address(*map2);
}

static void libpmem2(void)
{
	struct pmem2_map *map2;
	static char from[2 * PAGE];
	char *p = map_pmem2(&map2);
	fill(from, sizeof(from), 9);
	fill(p, 1000, 4);
	pmem2_get_persist_fn(map2)(p, 1000);
	fill(p + PAGE, 1000, 5);
	pmem2_get_flush_fn(map2)(p + PAGE, 1000);
	pmem2_get_drain_fn(map2)();
	pmem2_get_memcpy_fn(map2)(p + 2 * PAGE + 9, from, sizeof(from), 0);
	pmem2_get_memmove_fn(map2)(p + 2 * PAGE, p + 2 * PAGE + 9, 3000, 0);
	pmem2_get_memset_fn(map2)(p + 8 * PAGE, 3, 5000, 0);
	fill(p + 12 * PAGE, 100, 6);
	CHECK(pmem2_deep_flush(map2, p + 12 * PAGE, 100) == 0);
	CHECK(pmem2_map_delete(&map2) == 0);
}

/* What a future of libpmem2 begins with. Debian has the functions, and no header of libminiasync, by which libpmem2's declares them. */
struct pending {
	unsigned (*step)(void *context, void *notifier);
	void *property;
	struct {
		size_t sizes[2];
		unsigned state;
		char rest[1024];
	} context;
};
struct pending pmem2_memcpy_async(struct pmem2_map *, void *, const void *, size_t, unsigned);
struct pending pmem2_memmove_async(struct pmem2_map *, void *, const void *, size_t, unsigned);
struct pending pmem2_memset_async(struct pmem2_map *, void *, int, size_t, unsigned);

static void finish(struct pending pending)
{
	const unsigned complete = 1;
	while (pending.context.state != complete)
		pending.context.state = pending.step(&pending.context, NULL);
}

static void async(void)
{
	struct pmem2_map *map2;
	static char from[2 * PAGE];
	char *p = map_pmem2(&map2);
	fill(from, sizeof(from), 9);
	finish(pmem2_memcpy_async(map2, p + 9, from, sizeof(from), 0));
	finish(pmem2_memmove_async(map2, p + 3 * PAGE, p + 100, 3000, 0));
	finish(pmem2_memset_async(map2, p + 8 * PAGE, 3, 5000, 0));
	/* What nobody recorded by now is not, whatever the end of the program may record. */
	kill(getpid(), SIGKILL);
}

static void msyncs(void)
{
	int fd = create(SIZE);
	char *p = map(fd, SIZE);
	fill(p + 3 * PAGE, 100, 1);
	CHECK(msync(p, SIZE, MS_SYNC) == 0);
	fill(p + 9 * PAGE, 2 * PAGE, 2);
	CHECK(fsync(fd) == 0);
	fill(p + 20 * PAGE, 10, 3);
	CHECK(fdatasync(fd) == 0);
	/* stored through one mapping, synced through another */
	char *q = map(fd, SIZE);
	fill(q + 30 * PAGE, 10, 4);
	CHECK(msync(p + 30 * PAGE, PAGE, MS_SYNC) == 0);
	fill(p + 40 * PAGE, 10, 5);
	CHECK(munmap(p, SIZE) == 0);
	CHECK(fsync(fd) == 0);
}

/* Durable when the call returns: nobody lives to publish it later. */
static void dsync(void)
{
	char from[300];
	int fd = open(path, O_RDWR | O_CREAT | O_DSYNC, 0600);
	CHECK(fd >= 0);
	memset(from, 8, sizeof(from));
	CHECK(pwrite(fd, from, sizeof(from), 0) == sizeof(from));
	kill(getpid(), SIGKILL);
}

/* Written, and never synced. */
static void unsynced(void)
{
	char from[300];
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0);
	memset(from, 8, sizeof(from));
	CHECK(write(fd, from, 100) == 100 && pwrite(fd, from, 200, 100) == 200);
	kill(getpid(), SIGKILL);
}

/* The second half of the file lies over the middle of the first mapping. */
static void overlay(void)
{
	int fd = create(SIZE);
	char *p = map(fd, 8 * PAGE);
	CHECK(mmap(p + 2 * PAGE, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 32 * PAGE) != MAP_FAILED);
	for (int i = 0; i < 8; i++)
		p[i * PAGE + 5] = (char)(i + 1);
	pmem_persist(p, 8 * PAGE);
}

static void growth(void)
{
	int fd = create(4 * PAGE);
	char *p = map(fd, 4 * PAGE);
	fill(p, 4 * PAGE, 1);
	CHECK(ftruncate(fd, 16 * PAGE) == 0);
	p = mremap(p, 4 * PAGE, 16 * PAGE, MREMAP_MAYMOVE);
	CHECK(p != MAP_FAILED);
	fill(p + 10 * PAGE, PAGE, 2);
	CHECK(msync(p, 16 * PAGE, MS_SYNC) == 0);
	CHECK(posix_fallocate(fd, 0, 20 * PAGE) == 0);
	CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE) == 0);
	CHECK(truncate(path, 18 * PAGE + 5) == 0);
	CHECK(fsync(fd) == 0);
}

static void writes(void)
{
	char buf[9000];
	fill(buf, sizeof(buf), 1);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	CHECK(fd >= 0);
	CHECK(write(fd, buf, 5000) == 5000 && write(fd, buf, 77) == 77);
	CHECK(pwrite(fd, buf, 9000, 20000) == 9000);
	struct iovec iov[2] = { { buf, 100 }, { buf + 50, 200 } };
	CHECK(writev(fd, iov, 2) == 300 && pwritev(fd, iov, 2, 40000) == 300);
	CHECK(pwritev2(fd, iov, 2, 50000, RWF_DSYNC) == 300);
	int other = dup(fd);
	CHECK(lseek(other, 60000, SEEK_SET) == 60000 && write(other, buf, 10) == 10);
	CHECK(dup2(other, 200) == 200 && write(200, buf, 10) == 10);
	int in = open(path, O_RDONLY);
	off_t from = 0;
	CHECK(lseek(fd, 70000, SEEK_SET) == 70000 && sendfile(fd, in, &from, 500) == 500);
	loff_t a = 0, b = 80000;
	CHECK(copy_file_range(in, &a, fd, &b, 600, 0) == 600);
	int pipes[2];
	loff_t c = 90000;
	CHECK(pipe(pipes) == 0 && write(pipes[1], buf, 700) == 700);
	CHECK(splice(pipes[0], NULL, fd, &c, 700, 0) == 700);
	CHECK(close(fd) == 0);
	fd = open(path, O_WRONLY | O_APPEND);
	CHECK(write(fd, "appended", 8) == 8 && pwrite(fd, "twice", 5, 3) == 5);
	CHECK(fsync(fd) == 0);
}

static void stdio(void)
{
	FILE *f = fopen(path, "w+");
	CHECK(f);
	for (int i = 0; i < 3000; i++)
		fprintf(f, "line %d of many\n", i);
	CHECK(fseek(f, 1000, SEEK_SET) == 0 && fputs("overwritten", f) >= 0);
	CHECK(fflush(f) == 0 && fsync(fileno(f)) == 0);
	char line[32];
	rewind(f);
	CHECK(fgets(line, sizeof(line), f) && strcmp(line, "line 0 of many\n") == 0);
	CHECK(fclose(f) == 0);
	f = fopen(path, "a");
	CHECK(f && fputs("at the end", f) >= 0);
	/* left to exit */
}

/* The stream of standard output, which the program goes on to hold, gets another file. */
static void reopened(void)
{
	CHECK(freopen(path, "w", stdout) == stdout);
	for (int i = 0; i < 3000; i++)
		printf("line %d of many\n", i);
	CHECK(fflush(stdout) == 0 && fsync(STDOUT_FILENO) == 0);
	CHECK(fseek(stdout, 100, SEEK_SET) == 0);
	printf("left to exit");
}

static void refused(void)
{
	char other[4096], name[4096];
	snprintf(other, sizeof(other), "%s.tmp", path);
	int fd = create(8 * PAGE);
	CHECK(close(open(other, O_RDWR | O_CREAT, 0600)) == 0);
	CHECK(renameat2(AT_FDCWD, path, AT_FDCWD, other, RENAME_EXCHANGE) == -1 && errno == EINVAL);
	CHECK(renameat2(AT_FDCWD, other, AT_FDCWD, path, RENAME_EXCHANGE) == -1 && errno == EINVAL);
	CHECK(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, PAGE) == -1 && errno == EOPNOTSUPP);
	CHECK(fallocate(fd, FALLOC_FL_INSERT_RANGE, 0, PAGE) == -1 && errno == EOPNOTSUPP);
	const off_t too_large = ((off_t)16 << 40) + 1;
	CHECK(ftruncate(fd, too_large) == -1 && errno == EFBIG);
	CHECK(truncate(path, too_large) == -1 && errno == EFBIG);
	CHECK(fallocate(fd, 0, too_large, 1) == -1 && errno == EFBIG);
	CHECK(posix_fallocate(fd, too_large, 1) == EFBIG);
	snprintf(name, sizeof(name), "%s\xff", path);
	CHECK(rename(path, name) == -1 && errno == EINVAL);
	CHECK(rename(other, name) == 0); /* what is not protected may be called anything */
}

/* A write makes the file larger than any destination takes; what comes after is another file. */
static void outgrown(void)
{
	int fd = create(PAGE);
	CHECK(pwrite(fd, "far out", 7, (off_t)20 << 40) == 7 && fsync(fd) == 0);
	CHECK(pwrite(fd, "near", 4, 0) == 4 && fsync(fd) == 0);
}

static char first_name[4096], second_name[4096];

static void on_signal_rename(int sig)
{
	(void)sig;
	CHECK(rename(first_name, second_name) == 0 && rename(second_name, first_name) == 0);
}

static void *resize_on(void *fd)
{
	for (int i = 0;; i++)
		CHECK(ftruncate((int)(intptr_t)fd, PAGE * (1 + i % 2)) == 0);
	return fd;
}

static pthread_t writer;

static void *interrupt(void *unused)
{
	for (int i = 0; i < 2000; i++) {
		CHECK(pthread_kill(writer, SIGUSR1) == 0);
		usleep(100);
	}
	_exit(0);
	return unused;
}

/* While one thread resizes a file, the one that writes is interrupted by a handler that renames a third. */
static void interrupted(void)
{
	static char buf[256 * PAGE];
	char resized[4096];
	snprintf(first_name, sizeof(first_name), "%s.first", path);
	snprintf(second_name, sizeof(second_name), "%s.second", path);
	snprintf(resized, sizeof(resized), "%s.resized", path);
	int fd = create(sizeof(buf)), second = open(resized, O_RDWR | O_CREAT, 0600);
	int third = open(first_name, O_RDWR | O_CREAT, 0600);
	pthread_t thread;
	struct sigaction action = { .sa_handler = on_signal_rename, .sa_flags = SA_RESTART };
	writer = pthread_self();
	CHECK(second >= 0 && third >= 0 && sigaction(SIGUSR1, &action, NULL) == 0);
	CHECK(pthread_create(&thread, NULL, resize_on, (void *)(intptr_t)second) == 0);
	CHECK(pthread_create(&thread, NULL, interrupt, NULL) == 0);
	for (;;)
		CHECK(pwrite(fd, buf, sizeof(buf), 0) == sizeof(buf));
}

static void lock(int fd)
{
	struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	CHECK(fcntl(fd, F_SETLK, &all) == 0);
}

static void check_locked(void)
{
	pid_t child = fork();
	if (child == 0) {
		struct flock all = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
		int fd = open(path, O_RDWR);
		_exit(fd < 0 || fcntl(fd, F_GETLK, &all) != 0 || all.l_type == F_UNLCK);
	}
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* A locked file gets a protected name: the lock stays. */
static void locked(void)
{
	char other[4096];
	snprintf(other, sizeof(other), "%s.tmp", path);
	int fd = open(other, O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0 && write(fd, "before", 6) == 6);
	lock(fd);
	CHECK(rename(other, path) == 0);
	check_locked();
	CHECK(write(fd, "after", 5) == 5 && fsync(fd) == 0);
}

/* A file is mapped and locked, and only then does the agent come: the mapping is protected, the lock stays. */
static void adopted(void)
{
	int fd = create(SIZE);
	char *p = map(fd, SIZE), byte[1];
	fill(p, 100, 1);
	lock(fd);
	printf("mapped\n");
	CHECK(fflush(stdout) == 0 && read(STDIN_FILENO, byte, 1) == 1);
	/* whatever is opened has the library look for the agent again, not more often than every second */
	for (int i = 0; i < 15; i++) {
		CHECK(close(open(path, O_RDWR | O_APPEND)) == 0);
		lock(fd);
		usleep(100000);
	}
	check_locked();
	fill(p + PAGE, 100, 2);
	CHECK(msync(p, SIZE, MS_SYNC) == 0);
}

static void replace(void)
{
	char temporary[4096];
	snprintf(temporary, sizeof(temporary), "%s.new.tmp", path);
	for (int i = 0; i < 3; i++) {
		int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL, 0600);
		char buf[300];
		memset(buf, 'a' + i, sizeof(buf));
		CHECK(fd >= 0 && write(fd, buf, sizeof(buf)) == sizeof(buf) && fsync(fd) == 0);
		CHECK(close(fd) == 0 && rename(temporary, path) == 0);
	}
	char other[4096];
	snprintf(other, sizeof(other), "%s.gone", path);
	int fd = open(other, O_WRONLY | O_CREAT, 0600);
	CHECK(fd >= 0 && write(fd, "x", 1) == 1 && close(fd) == 0 && unlink(other) == 0);
	sync();
}

static void forks(void)
{
	char *p = map_pmem();
	for (int i = 0; i < 4; i++) {
		pid_t child = fork();
		CHECK(child >= 0);
		if (child == 0) {
			fill(p + i * PAGE, 500, i);
			pmem_persist(p + i * PAGE, 500);
			_exit(0);
		}
		int status;
		CHECK(waitpid(child, &status, 0) == child && status == 0);
	}
	fill(p + 9 * PAGE, 500, 9);
	pmem_persist(p + 9 * PAGE, 500);
	if (vfork() == 0)
		_exit(3);
	fill(p + 10 * PAGE, 500, 10);
	pmem_persist(p + 10 * PAGE, 500);
}

/* The parent is gone before its child goes on. */
static void daemons(void)
{
	int ready[2];
	char *p = map_pmem(), byte;
	fill(p, 500, 1);
	pmem_persist(p, 500);
	CHECK(pipe(ready) == 0);
	if (fork() != 0)
		_exit(0);
	CHECK(close(ready[1]) == 0 && read(ready[0], &byte, 1) == 0);
	fill(p + PAGE, 500, 2);
	pmem_persist(p + PAGE, 500);
	_exit(0);
}

static char *shared;

static void on_signal(int sig)
{
	static volatile int count;
	(void)sig;
	shared[32 * PAGE + 64 * (count % 64)] = (char)count;
	count = count + 1;
	pmem_persist(shared + 32 * PAGE, PAGE);
}

static void signals(void)
{
	shared = map_pmem();
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	pid_t me = getpid(), child = fork();
	if (child == 0) {
		for (int i = 0; i < 2000; i++)
			kill(me, SIGUSR1);
		_exit(0);
	}
	int status;
	for (uint64_t i = 0; waitpid(child, &status, WNOHANG) == 0; i++) {
		memcpy(shared + 8 * (i % 1000), &i, 8);
		pmem_persist(shared + 8 * (i % 1000), 8);
	}
	pmem_persist(shared, SIZE);
}

static void *thread(void *arg)
{
	char *p = shared + (uintptr_t)arg * 8 * PAGE;
	for (int i = 0; i < 3000; i++) {
		fill(p + (i % 100) * 300, 300, i);
		pmem_persist(p + (i % 100) * 300, 300);
	}
	return NULL;
}

static void threads(void)
{
	pthread_t t[4];
	shared = map_pmem();
	for (uintptr_t i = 0; i < 4; i++)
		CHECK(pthread_create(&t[i], NULL, thread, (void *)i) == 0);
	for (int i = 0; i < 4; i++)
		CHECK(pthread_join(t[i], NULL) == 0);
}

/* Stored and never synced: a clean exit leaves it in the page cache. */
static void left_at_exit(void)
{
	char *p = map(create(SIZE), SIZE);
	fill(p + 5 * PAGE, 100, 1);
}

/* Standard output is the protected file, opened by the parent, before the library was there. */
static void inherited(void)
{
	CHECK(write(STDOUT_FILENO, "inherited", 9) == 9 && fdatasync(STDOUT_FILENO) == 0);
}

static void left_at_quick_exit(void)
{
	left_at_exit();
	quick_exit(0);
}

static void store_unsynced(void)
{
	char *p = map(create(SIZE), SIZE);
	fill(p, 100, 1);
}

static void execs(void)
{
	store_unsynced();
	execvp("true", (char *[]){ "true", NULL });
	CHECK(0);
}

/* More arguments than there are registers for, each to arrive where it belongs. */
#define SEVEN "sh", "-c", "test $# = 6 -a $6 = f", "sh", "a", "b", "c", "d", "e", "f", (char *)NULL

static void execs_list(void)
{
	store_unsynced();
	execl("/bin/sh", SEVEN);
	CHECK(0);
}

static void execs_list_in_path(void)
{
	store_unsynced();
	execlp("sh", SEVEN);
	CHECK(0);
}

static void execs_list_with_environment(void)
{
	char *environment[] = { "A=b", NULL };
	store_unsynced();
	execle("/bin/sh", "sh", "-c", "test $A$# = b6", "sh", "a", "b", "c", "d", "e", "f", (char *)NULL, environment);
	CHECK(0);
}

/* The child has our memory and goes on in another program's; we do not get to our end. */
static void execs_beside_us(void)
{
	store_unsynced();
	int status;
	pid_t child = vfork();
	if (child == 0) {
		execlp("true", "true", (char *)NULL);
		_exit(1);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	kill(getpid(), SIGKILL);
}

/* Runs work in a process of its own, to its end. */
static pid_t begin(void (*work)(int), int fd)
{
	pid_t child = fork();
	CHECK(child >= 0);
	if (child == 0) {
		work(fd);
		_exit(0);
	}
	return child;
}

static void await(pid_t child)
{
	int status;
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* Another process empties the file, and this one writes less than it had written before. */
static void emptied(void (*empty)(int))
{
	char buf[PAGE];
	fill(buf, sizeof(buf), 1);
	int fd = create(0);
	CHECK(pwrite(fd, buf, PAGE, SIZE) == PAGE && fsync(fd) == 0);
	await(begin(empty, fd));
	fill(buf, sizeof(buf), 2);
	CHECK(pwrite(fd, buf, 100, 0) == 100 && fsync(fd) == 0);
}

static void ftruncate_to_nothing(int fd) { CHECK(ftruncate(fd, 0) == 0); }
static void truncate_to_nothing(int fd) { (void)fd; CHECK(truncate(path, 0) == 0); }
static void open_to_nothing(int fd) { (void)fd; CHECK(open(path, O_WRONLY | O_TRUNC) >= 0); }
static void stream_to_nothing(int fd) { (void)fd; CHECK(fopen(path, "w")); }
static void emptied_by_ftruncate(void) { emptied(ftruncate_to_nothing); }
static void emptied_by_truncate(void) { emptied(truncate_to_nothing); }
static void emptied_by_open(void) { emptied(open_to_nothing); }
static void emptied_by_stream(void) { emptied(stream_to_nothing); }

static void append_lines(int fd)
{
	char line[100];
	(void)fd;
	memset(line, 'a' + getpid() % 26, sizeof(line));
	int own = open(path, O_WRONLY | O_APPEND);
	CHECK(own >= 0);
	for (int i = 0; i < 3000; i++)
		CHECK(write(own, line, sizeof(line)) == sizeof(line) && (i % 100 || fsync(own) == 0));
}

static void rewrite(int fd)
{
	char buf[PAGE];
	/* longer than the other cuts */
	for (int i = 0; i < 9000; i++) {
		fill(buf, sizeof(buf), i);
		CHECK(pwrite(fd, buf, 1 + i * 37 % PAGE, 0) > 0);
	}
}

static void cut(int fd)
{
	for (int i = 0; i < 3000; i++)
		CHECK(ftruncate(fd, i * 91 % PAGE) == 0);
}

static void together(void (*one)(int), void (*other)(int))
{
	int fd = create(0);
	pid_t first = begin(one, fd), second = begin(other, fd);
	await(first);
	await(second);
	CHECK(fsync(fd) == 0);
}

static void appenders(void) { together(append_lines, append_lines); }
static void cut_while_written(void) { together(rewrite, cut); }

/* Reading a single byte through such a descriptor fails. */
static void direct(void)
{
	char *buf = aligned_alloc(PAGE, 2 * PAGE);
	int fd = open(path, O_RDWR | O_CREAT | O_DIRECT, 0600);
	CHECK(buf && fd >= 0);
	fill(buf, 2 * PAGE, 1);
	CHECK(pwrite(fd, buf, 2 * PAGE, PAGE) == 2 * PAGE && fsync(fd) == 0);
}

/* No descriptor is left for the library to read by what is written. */
static void unreadable(void)
{
	int fd = open(path, O_WRONLY | O_CREAT, 0600);
	CHECK(fd >= 0 && fsync(fd) == 0);
	struct rlimit all_taken = { fd + 1, fd + 1 };
	CHECK(setrlimit(RLIMIT_NOFILE, &all_taken) == 0);
	CHECK(write(fd, "unread", 6) == 6 && fsync(fd) == 0);
}

static int forked_from = -1;

static void in_fork_handler(void)
{
	if (forked_from >= 0)
		CHECK(write(forked_from, "handler", 7) == 7 && fsync(forked_from) == 0);
}

static void register_handlers(void)
{
	CHECK(pthread_atfork(in_fork_handler, in_fork_handler, in_fork_handler) == 0);
}

/* Before the constructors of any library. */
__attribute__((section(".preinit_array"), used)) static void (*const earliest)(void) = register_handlers;

static void write_on(int fd)
{
	CHECK(write(fd, "child", 5) == 5 && fsync(fd) == 0);
}

/* The program's fork handlers, older and newer than the library's, write to the file and sync it. */
static void fork_handlers(void)
{
	register_handlers();
	forked_from = create(0);
	for (int i = 0; i < 3; i++)
		await(begin(write_on, forked_from));
	CHECK(write(forked_from, "parent", 6) == 6 && fsync(forked_from) == 0);
}

/* POSIX shared memory, emptied and made anew under the number of a stream that glibc closed. */
static void shared_memory(void)
{
	char other[4096], gone[4096];
	const char *name = strrchr(path, '/');
	snprintf(other, sizeof(other), "%s.tmp", path);
	snprintf(gone, sizeof(gone), "%s.gone", name);
	int fd = shm_open(name, O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
	char *p = map(fd, SIZE);
	fill(p, SIZE, 1);
	pmem_persist(p, SIZE);
	CHECK(munmap(p, SIZE) == 0 && close(fd) == 0);
	FILE *stream = fopen(other, "w");
	CHECK(stream && fileno(stream) == fd && fputs("x", stream) >= 0 && fclose(stream) == 0 && unlink(other) == 0);
	CHECK(shm_open(name, O_RDWR | O_TRUNC, 0600) == fd && ftruncate(fd, SIZE) == 0);
	p = map(fd, SIZE);
	fill(p + PAGE, 100, 2);
	pmem_persist(p + PAGE, 100);
	CHECK(shm_open(gone, O_RDWR | O_CREAT, 0600) >= 0 && shm_unlink(gone) == 0);
	pmem_drain();
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} ways[] = {
		{ "flush", flush_and_drain }, { "copies", copies }, { "noflush", noflush },
		{ "private", private_mapping }, { "libpmem2", libpmem2 }, { "msync", msyncs },
		{ "overlay", overlay }, { "growth", growth }, { "writes", writes }, { "stdio", stdio },
		{ "replace", replace }, { "fork", forks }, { "signals", signals }, { "threads", threads },
		{ "exit", left_at_exit }, { "inherited", inherited }, { "exec", execs },
		{ "vforked", execs_beside_us },
		{ "dsync", dsync }, { "unsynced", unsynced }, { "undrained", undrained }, { "in_order", in_order },
		{ "async", async },
		{ "execl", execs_list }, { "execlp", execs_list_in_path }, { "execle", execs_list_with_environment },
		{ "quick_exit", left_at_quick_exit }, { "covered", covered }, { "straddle", straddle },
		{ "lookup", lookup }, { "freopen", reopened }, { "refused", refused }, { "outgrown", outgrown }, { "interrupted", interrupted }, { "locked", locked },
		{ "adopted", adopted }, { "daemon", daemons },
		{ "ftruncated", emptied_by_ftruncate }, { "truncated", emptied_by_truncate },
		{ "opened", emptied_by_open }, { "fopened", emptied_by_stream },
		{ "appenders", appenders }, { "cut", cut_while_written }, { "direct", direct },
		{ "unreadable", unreadable }, { "atfork", fork_handlers }, { "shm", shared_memory },
	};
	CHECK(argc == 3);
	path = argv[2];
	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		if (strcmp(argv[1], ways[i].name) == 0) {
			ways[i].run();
			return 0;
		}
	}
	return 4;
}
