/*-------------------------------------------------------------------------
 *
 * mock_broker.c
 *	  A host for librdkafka's mock cluster: a broker that starts at once and
 *	  fails on command.
 *
 *	mock_broker [--brokers N]
 *
 * Prints "bootstrap HOST:PORT[,HOST:PORT]..." and then answers each line of
 * standard input with one line, "ok ..." or "error ...":
 *
 *	topic NAME PARTITIONS [RF]		make a topic (others are made on first use)
 *	down [BROKER]					close a broker's connections (all brokers')
 *	up [BROKER]						and let them in again
 *	rtt MS [BROKER]					delay every answer
 *	push_errors APIKEY CODE...		answer the next requests with these codes
 *	leader TOPIC PARTITION BROKER	BROKER -1: no leader
 *	topic_error NAME CODE			in metadata answers; CODE 0 ends it
 *	bootstrap						print the addresses again
 *	quit
 *
 * It ends at the end of standard input, too.  What the mock cluster lacks:
 * admin requests, real transactions, deduplication, TLS and SASL; and it keeps
 * no more than 5 MB a partition.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>

#define MAX_WORDS	64

/* Metadata requests: their key, and the latest version that is answered */
#define METADATA	3
#define METADATA_VERSION	2

typedef struct Mock
{
	rd_kafka_t *rk;
	rd_kafka_mock_cluster_t *cluster;
	int			brokers;
} Mock;

typedef struct Command
{
	const char *name;
	int			min_args;
	int			max_args;
	void		(*run) (Mock *mock, int nargs, char **args);
} Command;

int			accept(int fd, struct sockaddr *addr, socklen_t *len);
int			accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags);

/*
 * The mock cluster leaves Nagle's algorithm on, which makes every answer wait
 * up to 40 ms for the client's delayed acknowledgement.  These stand in front
 * of libc's, since the executable comes first in the order of symbols.
 */
static int
no_delay(int fd)
{
	int			on = 1;

	if (fd >= 0)
		(void) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	return fd;
}

int
accept(int fd, struct sockaddr *addr, socklen_t *len)
{
	static int	(*real) (int, struct sockaddr *, socklen_t *);

	if (real == NULL)
		*(void **) &real = dlsym(RTLD_NEXT, "accept");
	return no_delay(real(fd, addr, len));
}

int
accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
	static int	(*real) (int, struct sockaddr *, socklen_t *, int);

	if (real == NULL)
		*(void **) &real = dlsym(RTLD_NEXT, "accept4");
	return no_delay(real(fd, addr, len, flags));
}

static void reply(const char *fmt,...) __attribute__((format(printf, 1, 2)));

static void
reply(const char *fmt,...)
{
	va_list		args;

	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
}

static void
reply_err(rd_kafka_resp_err_t err)
{
	if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
		reply("ok");
	else
		reply("error %s", rd_kafka_err2name(err));
}

/* Apply a function to the broker named by args[at], or to each. */
static void
each_broker(Mock *mock, int nargs, char **args, int at,
			rd_kafka_resp_err_t (*apply) (Mock *mock, int broker, int value),
			int value)
{
	int			first = nargs > at ? atoi(args[at]) : 1;
	int			last = nargs > at ? first : mock->brokers;
	rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;

	for (int broker = first; broker <= last && !err; broker++)
		err = apply(mock, broker, value);
	reply_err(err);
}

static rd_kafka_resp_err_t
set_up(Mock *mock, int broker, int value)
{
	return value ? rd_kafka_mock_broker_set_up(mock->cluster, broker) :
		rd_kafka_mock_broker_set_down(mock->cluster, broker);
}

static rd_kafka_resp_err_t
set_rtt(Mock *mock, int broker, int value)
{
	return rd_kafka_mock_broker_set_rtt(mock->cluster, broker, value);
}

static void
run_topic(Mock *mock, int nargs, char **args)
{
	int			rf = nargs > 2 ? atoi(args[2]) : 1;

	reply_err(rd_kafka_mock_topic_create(mock->cluster, args[0],
										 atoi(args[1]), rf));
}

static void
run_down(Mock *mock, int nargs, char **args)
{
	each_broker(mock, nargs, args, 0, set_up, false);
}

static void
run_up(Mock *mock, int nargs, char **args)
{
	each_broker(mock, nargs, args, 0, set_up, true);
}

static void
run_rtt(Mock *mock, int nargs, char **args)
{
	each_broker(mock, nargs, args, 1, set_rtt, atoi(args[0]));
}

static void
run_push_errors(Mock *mock, int nargs, char **args)
{
	rd_kafka_resp_err_t codes[MAX_WORDS];

	for (int i = 1; i < nargs; i++)
		codes[i - 1] = atoi(args[i]);
	rd_kafka_mock_push_request_errors_array(mock->cluster, atoi(args[0]),
											nargs - 1, codes);
	reply("ok");
}

static void
run_leader(Mock *mock, int nargs, char **args)
{
	(void) nargs;
	reply_err(rd_kafka_mock_partition_set_leader(mock->cluster, args[0],
												 atoi(args[1]), atoi(args[2])));
}

static void
run_topic_error(Mock *mock, int nargs, char **args)
{
	(void) nargs;
	rd_kafka_mock_topic_set_error(mock->cluster, args[0], atoi(args[1]));
	reply("ok");
}

static void
run_bootstrap(Mock *mock, int nargs, char **args)
{
	(void) nargs;
	(void) args;
	reply("ok %s", rd_kafka_mock_cluster_bootstraps(mock->cluster));
}

static const Command commands[] = {
	{"topic", 2, 3, run_topic},
	{"down", 0, 1, run_down},
	{"up", 0, 1, run_up},
	{"rtt", 1, 2, run_rtt},
	{"push_errors", 2, MAX_WORDS, run_push_errors},
	{"leader", 3, 3, run_leader},
	{"topic_error", 2, 2, run_topic_error},
	{"bootstrap", 0, 0, run_bootstrap},
};

static int
split(char *line, char **words)
{
	int			n = 0;

	for (char *word = strtok(line, " \t\r\n"); word != NULL && n < MAX_WORDS;
		 word = strtok(NULL, " \t\r\n"))
		words[n++] = word;
	return n;
}

static void
run_line(Mock *mock, int nwords, char **words)
{
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
	{
		const Command *command = &commands[i];

		if (strcmp(command->name, words[0]) != 0)
			continue;
		if (nwords - 1 < command->min_args || nwords - 1 > command->max_args)
			reply("error wrong number of arguments to %s", words[0]);
		else
			command->run(mock, nwords - 1, words + 1);
		return;
	}
	reply("error unknown command %s", words[0]);
}

/*
 * The mock cluster answers metadata requests alike whatever librdkafka it comes
 * with, as that of 2.0 does.  Later ones make no topic on first use for a client
 * that doesn't want that; and with a topic's error they list its partitions and
 * their epochs, which no broker does, and which crashes clients of 2.6 to 2.8.
 */
static bool
limit_versions(Mock *mock)
{
	rd_kafka_resp_err_t err;

	err = rd_kafka_mock_set_apiversion(mock->cluster, METADATA, 0, METADATA_VERSION);
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		fprintf(stderr, "mock_broker: could not limit versions: %s\n",
				rd_kafka_err2name(err));
	return err == RD_KAFKA_RESP_ERR_NO_ERROR;
}

/*
 * The threads of the client and of the mock cluster inherit the mask: with
 * everything blocked there, a signal always comes to the main thread.
 */
static bool
start(Mock *mock)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char		error[512];
	sigset_t	all,
				old;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	mock->rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof(error));
	if (mock->rk == NULL)
		fprintf(stderr, "mock_broker: %s\n", error);
	else
	{
		mock->cluster = rd_kafka_mock_cluster_new(mock->rk, mock->brokers);
		if (mock->cluster == NULL)
			fprintf(stderr, "mock_broker: could not start %d brokers\n",
					mock->brokers);
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return mock->cluster != NULL && limit_versions(mock);
}

int
main(int argc, char **argv)
{
	Mock		mock = {.brokers = 1};
	char		line[4096];

	if (argc == 3 && strcmp(argv[1], "--brokers") == 0)
		mock.brokers = atoi(argv[2]);
	else if (argc != 1)
	{
		fprintf(stderr, "usage: %s [--brokers N]\n", argv[0]);
		return 2;
	}

	signal(SIGPIPE, SIG_IGN);
	if (!start(&mock))
		return 1;
	printf("bootstrap %s\n", rd_kafka_mock_cluster_bootstraps(mock.cluster));
	fflush(stdout);

	while (fgets(line, sizeof(line), stdin) != NULL)
	{
		char	   *words[MAX_WORDS];
		int			nwords = split(line, words);

		if (nwords == 0)
			continue;
		if (strcmp(words[0], "quit") == 0)
		{
			reply("ok");
			break;
		}
		run_line(&mock, nwords, words);
	}

	/* Nothing is kept, and an orderly end may wait for clients. */
	fflush(stdout);
	_Exit(0);
}
