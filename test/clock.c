/*
 * A clock that tests can push on, for the processes of a PostgreSQL server:
 * preload it, with OUTBOX_TEST_CLOCK naming a file that begins with how many
 * microseconds it is ahead of the system's.  Other processes, such as the
 * bridge, keep the time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead = NULL;
static int	(*real_clock_gettime) (clockid_t, struct timespec *) = NULL;

__attribute__((constructor))
static void
clock_init(void)
{
	const char *path = getenv("OUTBOX_TEST_CLOCK");
	void	   *map;
	int			fd;

	real_clock_gettime = (int (*) (clockid_t, struct timespec *))
		dlsym(RTLD_NEXT, "clock_gettime");
	if (path == NULL || strcmp(program_invocation_short_name, "postgres") != 0)
		return;
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	map = mmap(NULL, sizeof(*ahead), PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (map != MAP_FAILED)
		ahead = map;
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int			result = real_clock_gettime(clock, now);

	if (result == 0 && ahead != NULL &&
		(clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
	{
		int64_t		ns = now->tv_nsec + *ahead % 1000000 * 1000;

		now->tv_sec += *ahead / 1000000 + ns / 1000000000;
		now->tv_nsec = ns % 1000000000;
	}
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;

	(void) zone;
	clock_gettime(CLOCK_REALTIME, &precise);
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *result)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (result != NULL)
		*result = now.tv_sec;
	return now.tv_sec;
}
