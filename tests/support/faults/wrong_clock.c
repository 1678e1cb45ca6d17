/* A library for LD_PRELOAD that shifts a process' wall clock by the seconds in the file $WRONG_BY (a native int64).
   A change of the file takes effect at once, in every thread. Deadlines are shifted back, so that waits take as long as
   the caller intended. Nothing here locks or allocates, because jobs have many threads. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *wrong_by;

__attribute__((constructor)) static void map_the_file(void) {
    const char *name = getenv("WRONG_BY");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *there = mmap(NULL, sizeof *wrong_by, PROT_READ, MAP_SHARED, file, 0);
    if (there != MAP_FAILED) wrong_by = there;
    close(file);
}

static int64_t seconds(void) { return wrong_by ? *wrong_by : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = (int)syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += seconds();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = (int)syscall(SYS_gettimeofday, now, zone);
    if (!failed) now->tv_sec += seconds();
    return failed;
}

time_t time(time_t *also) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (also) *also = now.tv_sec;
    return now.tv_sec;
}

/* Takes a deadline after 2001 as one of the wall clock: the monotonic clock counts from the start of the machine. */
static struct timespec meant(const struct timespec *deadline) {
    struct timespec real = *deadline;
    if (real.tv_sec > 1000000000) real.tv_sec -= seconds();
    return real;
}

#define WAITS(NAME, TAKES, GIVES, DEADLINE)                      \
    int NAME TAKES {                                             \
        static int(*next) TAKES;                                 \
        if (!next) next = (int(*) TAKES)dlsym(RTLD_NEXT, #NAME); \
        struct timespec real = meant(DEADLINE);                  \
        return next GIVES;                                       \
    }

WAITS(sem_timedwait, (sem_t * restrict s, const struct timespec *restrict t), (s, &real), t)
WAITS(pthread_mutex_timedlock, (pthread_mutex_t * restrict m, const struct timespec *restrict t), (m, &real), t)
WAITS(pthread_cond_timedwait,
      (pthread_cond_t * restrict c, pthread_mutex_t *restrict m, const struct timespec *restrict t), (c, m, &real), t)
WAITS(pthread_cond_clockwait,
      (pthread_cond_t * restrict c, pthread_mutex_t *restrict m, clockid_t k, const struct timespec *restrict t),
      (c, m, k, &real), t)
