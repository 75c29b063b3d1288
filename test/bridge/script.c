/*-------------------------------------------------------------------------
 *
 * script.c
 *	  The tests of the bridge alone: a script of frames against the program.
 *
 * Kafka is librdkafka's mock cluster, in this process.  The arguments name
 * groups of tests to run; without any, all run.
 *
 *-------------------------------------------------------------------------
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"

rd_kafka_mock_cluster_t *cluster;
const char *bootstraps;

static const struct
{
	const char *name;
	void		(*run) (void);
}			groups[] =
{
	{"frames", test_frames},
	{"protocol", test_protocol},
	{"version", test_version},
	{"isolation", test_isolation},
	{"produce", test_produce},
	{"outage", test_outage},
	{"consume", test_consume},
};

static void
start_cluster(void)
{
	char		text[512];
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	rd_kafka_t *rk;
	sigset_t	all;
	sigset_t	saved;

	/* The mock's thread would inherit our signals */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &saved);
	rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof(text));
	cluster = rd_kafka_mock_cluster_new(rk, 2);
	pthread_sigmask(SIG_SETMASK, &saved, NULL);
	bootstraps = rd_kafka_mock_cluster_bootstraps(cluster);
}

int
main(int argc, char **argv)
{
	signal(SIGPIPE, SIG_IGN);
	if (getenv("BRIDGE_SLOW") != NULL)
		slow = atoi(getenv("BRIDGE_SLOW"));
	start_cluster();
	for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++)
	{
		bool		wanted = argc < 2;

		for (int a = 1; a < argc; a++)
			wanted |= strcmp(argv[a], groups[i].name) == 0;
		if (wanted)
		{
			note("%s", groups[i].name);
			groups[i].run();
		}
	}
	return tap_finish();
}
