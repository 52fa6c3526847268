/*
 * Flushes and drains many times, and fails at the first system call meanwhile, which it names.
 *
 *     no-calls FILE
 *
 * With libpmem for the preload library; with -DC_API for libpmemha.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CHECK(x) do { if (!(x)) { perror(#x); exit(3); } } while (0)

#define SIZE (1 << 20)
#define LINE 64
#define ROUNDS 4000

static char *memory;

#ifdef C_API
#include <pmemha.h>

static struct pmemha_session *session;
static struct pmemha_region *region;

static void begin(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0 && ftruncate(fd, SIZE) == 0);
	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(memory != MAP_FAILED);
	CHECK(pmemha_open(NULL, NULL, &session) == PMEMHA_OK);
	CHECK(pmemha_protect_range(session, memory, SIZE, &region) == PMEMHA_OK);
}

static void flush(char *at, size_t len)
{
	CHECK(pmemha_flush(region, at, len) == PMEMHA_OK);
}

static void drain(void)
{
	CHECK(pmemha_drain(session, NULL) == PMEMHA_OK);
}
#else
#include <libpmem.h>

static void begin(const char *path)
{
	size_t len;
	int is_pmem;
	memory = pmem_map_file(path, SIZE, PMEM_FILE_CREATE, 0600, &len, &is_pmem);
	CHECK(memory && is_pmem);
}

static void flush(char *at, size_t len)
{
	pmem_flush(at, len);
}

static void drain(void)
{
	pmem_drain();
}
#endif

/* By bare system calls: the preload library stands before the functions, and does more. */
static void end(const char *text, int status)
{
	syscall(SYS_write, STDOUT_FILENO, text, strlen(text));
	syscall(SYS_exit_group, status);
}

static void called(int signal, siginfo_t *info, void *context)
{
	char text[64];
	(void)signal, (void)context;
	snprintf(text, sizeof(text), "system call %d\n", info->si_syscall);
	end(text, 4);
}

/* From here on this thread may say something and end; every other system call raises SIGSYS instead. */
static void forbid_system_calls(void)
{
	struct sigaction action = { .sa_sigaction = called, .sa_flags = SA_SIGINFO };
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 0, 2),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, STDOUT_FILENO, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(filter) / sizeof(filter[0]), .filter = filter };
	CHECK(sigaction(SIGSYS, &action, NULL) == 0);
	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/* Epochs of one record, of several, and of records that span lines and pages. */
static void round_of_epochs(int i)
{
	char *at = memory + (size_t)i % (SIZE / 8192) * 8192;
	memset(at, i, LINE);
	flush(at, LINE);
	drain();
	memset(at + LINE, i, 3 * LINE);
	flush(at + LINE, 8);
	flush(at + 3 * LINE - 4, 8);
	drain();
	drain();
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	begin(argv[1]);
	/* once before, so that everything is resolved, detected and faulted in */
	for (int i = 0; i < SIZE / 8192; i++)
		round_of_epochs(i);
	flush(memory + 4096 - LINE, 2 * LINE);
	drain();
	forbid_system_calls();
	for (int i = 0; i < ROUNDS; i++)
		round_of_epochs(i);
	flush(memory + 4096 - LINE, 2 * LINE);
	drain();
	end("no system call\n", 0);
}
