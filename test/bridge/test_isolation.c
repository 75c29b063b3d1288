/*-------------------------------------------------------------------------
 *
 * test_isolation.c
 *	  The bridge as a process: what it inherits, and when it ends.
 *
 *-------------------------------------------------------------------------
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

static bool running(pid_t pid);
static void descriptors(void);
static void signals(void);
static void ends(void);
static void dead_worker(void);
static void wrong_parent(void);

/* Is there such a process, and not just what remains of it? */
static bool
running(pid_t pid)
{
	char		path[64];
	char		state = 'Z';
	FILE	   *file;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int) pid);
	file = fopen(path, "r");
	if (file == NULL)
		return false;
	if (fscanf(file, "%*d (%*[^)]) %c", &state) != 1)
		state = 'Z';
	fclose(file);
	return state != 'Z' && state != 'X';
}

/* It has what it made itself, three times /dev/null at most, and its socket */
static void
descriptors(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	char		path[64];
	DIR		   *dir;
	struct dirent *entry;
	int			foreign = 0;
	int			all = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int) child->pid);
	dir = opendir(path);
	while (dir != NULL && (entry = readdir(dir)) != NULL)
	{
		char		target[256] = "";
		int			fd = atoi(entry->d_name);

		if (entry->d_name[0] == '.')
			continue;
		all++;
		if (readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1) < 0)
			continue;
		/* 0 to 2 are the test's; a wrapper keeps its own far above */
		if (fd > 2 && fd < 1000 && strncmp(target, "socket:", 7) != 0 &&
			strncmp(target, "anon_inode:[event", 17) != 0 && strncmp(target, "pipe:", 5) != 0)
		{
			note("descriptor %d is %s", fd, target);
			foreign++;
		}
	}
	if (dir != NULL)
		closedir(dir);
	ok(all > 4 && foreign == 0, "none of %d descriptors is inherited", all);
	child_stop(child);
}

/* The worker's process group gets these; they are for the worker to answer */
static void
signals(void)
{
	Child	   *child = child_hello('p', bootstraps, NULL);
	int			status;

	kill(child->pid, SIGINT);
	kill(child->pid, SIGTERM);
	kill(child->pid, SIGHUP);
	send_tag(child, FRAME_PING, 1);
	ok(expect(child, FRAME_PONG, 5000), "SIGINT, SIGTERM and SIGHUP don't end it");
	kill(child->pid, SIGKILL);
	status = child_wait(child, 5000);
	ok(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && !child_read(child, 1000) && child->eof,
	   "SIGKILL is an end of file");
	child_stop(child);
}

/* Its end of the socket closes, and it ends, whatever it has to do still */
static void
ends(void)
{
	Child	   *child = child_hello('p', "127.0.0.1:1", NULL);
	int			status;
	char	   *value = malloc(1000001);

	close(child->fd);
	child->fd = -1;
	status = child_wait(child, 3000);
	ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "it ends with its socket");
	child_stop(child);

	child = child_hello('p', "127.0.0.1:1", NULL);
	memset(value, 'x', 1000000);
	value[1000000] = '\0';
	for (uint32_t i = 0; i < 100; i++)
		send_record(child, i, "topic", "k", value);
	child_send(child);
	child_read(child, 200);
	close(child->fd);
	child->fd = -1;
	status = child_wait(child, 3000);
	ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "with a hundred megabytes under way, too");
	child_stop(child);
	free(value);
}

/* A worker that dies takes its bridge along, even one that is stopped */
static void
dead_worker(void)
{
	int			pipes[2];
	pid_t		worker;
	pid_t		bridge = 0;
	bool		gone = false;

	if (pipe(pipes) != 0)
		abort();
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	fflush(stdout);
	worker = fork();
	if (worker == 0)
	{
		Child	   *child = child_hello('p', bootstraps, NULL);

		kill(child->pid, SIGSTOP);
		if (write(pipes[1], &child->pid, sizeof(pid_t)) < 0)
			_exit(1);
		pause();
		_exit(0);
	}
	if (read(pipes[0], &bridge, sizeof(pid_t)) != sizeof(pid_t) || !running(bridge))
		note("the bridge didn't start");
	kill(worker, SIGKILL);
	waitpid(worker, NULL, 0);
	for (int64_t until = clock_ms() + 3000; clock_ms() < until && !gone; usleep(2000))
		gone = waitpid(bridge, NULL, WNOHANG) != 0 || !running(bridge);
	ok(bridge > 0 && gone, "a stopped bridge dies with its worker");
	if (!gone)
		kill(bridge, SIGKILL);
	while (waitpid(bridge, NULL, 0) < 0 && errno == EINTR)
		;
	prctl(PR_SET_CHILD_SUBREAPER, 0);
	close(pipes[0]);
	close(pipes[1]);
}

/* The worker may die while the bridge starts: another is its parent then */
static void
wrong_parent(void)
{
	int			socks[2];
	int			status = -1;
	pid_t		pid;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, socks) != 0)
		abort();
	fflush(stdout);
	pid = fork();
	if (pid == 0)
	{
		/* The bridge's parent is this process, which isn't the worker */
		Child	   *child = child_start_on(socks[1]);

		status = child_wait(child, 5000);
		_exit(WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : 1);
	}
	waitpid(pid, &status, 0);
	ok(WIFEXITED(status) && WEXITSTATUS(status) == 0, "it doesn't run for a worker that is gone");
	close(socks[0]);
	close(socks[1]);
}

void
test_isolation(void)
{
	descriptors();
	signals();
	ends();
	dead_worker();
	wrong_parent();
}
