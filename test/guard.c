/*-------------------------------------------------------------------------
 *
 * guard.c
 *	  Runs a command that ends with the process that started it.
 *
 *	guard COMMAND [ARGUMENT]...
 *
 * The command becomes the process (its pid is that of guard), with default
 * signal handling, and is killed when its parent is gone, however that ended:
 * a test killed with -9 has no END block.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

int
main(int argc, char **argv)
{
	pid_t		parent = getppid();
	sigset_t	none;

	if (argc < 2)
	{
		fprintf(stderr, "usage: %s COMMAND [ARGUMENT]...\n", argv[0]);
		return 2;
	}

	if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
	{
		fprintf(stderr, "guard: prctl: %s\n", strerror(errno));
		return 1;
	}

	/* It may have ended before the call; then nobody would tell us. */
	if (getppid() != parent || parent == 1)
		return 1;

	/* Masks and ignored signals survive exec. */
	for (int signo = 1; signo < NSIG; signo++)
	{
		if (signo != SIGKILL && signo != SIGSTOP)
			signal(signo, SIG_DFL);
	}
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);

	execvp(argv[1], argv + 1);
	fprintf(stderr, "guard: %s: %s\n", argv[1], strerror(errno));
	return 127;
}
