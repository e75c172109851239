/* Runs a program with limits and writes how it ended, what it cost and nothing else into a file.
 *
 *     measure REPORT SECONDS MIB PROGRAM [ARGUMENT...]
 *
 * The report is `exit CODE` or `signal NUMBER`, then microseconds of the processor and the most memory in KiB. After
 * SECONDS of the clock the program is killed, and no more than MIB of addresses are given to it (0: as many as it wants).
 * The memory is that of the program alone: what the system counts for a child includes whoever it was forked from, which
 * is why this is a small process of its own. What BB_PRELOAD names is loaded into the program, not into this one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t child;

static void too_long(int signal) {
    (void)signal;
    kill(child, SIGKILL);
}

static void limit(int what, rlim_t most) {
    struct rlimit both = {most, most};
    setrlimit(what, &both);
}

int main(int count, char **words) {
    if (count < 5) return 2;
    child = fork();
    if (child < 0) return 2;
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        limit(RLIMIT_CORE, 0);
        long mib = atol(words[3]);
        if (mib > 0) limit(RLIMIT_AS, (rlim_t)mib << 20);
        const char *preload = getenv("BB_PRELOAD");
        if (preload) setenv("LD_PRELOAD", preload, 1);
        execv(words[4], words + 4);
        _exit(127);
    }
    signal(SIGALRM, too_long);
    alarm((unsigned)atoi(words[2]));
    int status;
    struct rusage used;
    while (wait4(child, &status, 0, &used) < 0)
        if (errno != EINTR) return 2;
    FILE *report = fopen(words[1], "w");
    if (!report) return 2;
    long long micros = (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000LL + used.ru_utime.tv_usec + used.ru_stime.tv_usec;
    int exited = WIFEXITED(status);
    fprintf(report, "%s %d %lld %ld\n", exited ? "exit" : "signal", exited ? WEXITSTATUS(status) : WTERMSIG(status), micros, used.ru_maxrss);
    return fclose(report) ? 2 : 0;
}
