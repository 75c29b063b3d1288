/*-------------------------------------------------------------------------
 *
 * kbench.c
 *	  The bench's own client of Kafka: what librdkafka alone can do, and when
 *	  records become visible.
 *
 *	kbench BOOTSTRAP produce TOPIC N [FIRST]	as fast as it goes; prints the
 *											seconds from the first to the last
 *											acknowledged, and of CPU; ids count
 *											from FIRST
 *	kbench BOOTSTRAP pace TOPIC RATE SECONDS	so many a second, one by one
 *	kbench BOOTSTRAP results TOPIC			for each message id on standard input
 *											a result that says SUCCESS
 *	kbench BOOTSTRAP watch TOPIC			prints what arrives from now on, until
 *											SIGTERM; first a line "ready"
 *
 * Records are those that capture makes of the bench's orders: a key, the value
 * as JSON, headers "id" and "op".  pace and watch print lines of CLIENT, NUMBER
 * and the time in us since 1970; pace when it hands the record to the client.
 *
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE				/* memmem */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>

#define VALUE_BYTES		200
#define DISTINCT		4096	/* records that are made beforehand */
#define KEYS			1000
#define MAX_PARTITIONS	64

static const char *bootstrap;
static int64_t undelivered;
static volatile sig_atomic_t stopping;

static void die(const char *fmt,...) __attribute__((noreturn, format(printf, 1, 2)));

static void
die(const char *fmt,...)
{
	va_list		args;

	fprintf(stderr, "kbench: ");
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	fputc('\n', stderr);
	_exit(1);
}

static int64_t
clock_us(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static int64_t
cpu_us(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (int64_t) (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
		usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
}

/* ---------- clients ---------- */

static void
on_delivered(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
	(void) rk;
	(void) opaque;
	if (message->err)
		undelivered++;
}

static rd_kafka_t *
new_client(rd_kafka_type_t type, const char *const *properties)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char		error[256];
	rd_kafka_t *rk;

	if (rd_kafka_conf_set(conf, "bootstrap.servers", bootstrap, error, sizeof(error)))
		die("%s", error);
	for (; *properties != NULL; properties += 2)
	{
		if (rd_kafka_conf_set(conf, properties[0], properties[1], error, sizeof(error)))
			die("%s", error);
	}
	if (type == RD_KAFKA_PRODUCER)
		rd_kafka_conf_set_dr_msg_cb(conf, on_delivered);
	rk = rd_kafka_new(type, conf, error, sizeof(error));
	if (rk == NULL)
		die("%s", error);
	return rk;
}

/* librdkafka's defaults but for what a careful application sets */
static rd_kafka_t *
new_producer(const char *linger)
{
	const char *const properties[] = {
		"enable.idempotence", "true",
		"acks", "all",
		"partitioner", "murmur2_random",
		"queue.buffering.max.messages", "200000",
		"linger.ms", linger,
		NULL
	};

	return new_client(RD_KAFKA_PRODUCER, properties);
}

/* ---------- records ---------- */

typedef struct Record
{
	char		key[16];
	char		value[VALUE_BYTES + 64];
	size_t		key_len;
	size_t		value_len;
} Record;

static void
make_record(Record *record, int64_t number)
{
	int			len;

	record->key_len = snprintf(record->key, sizeof(record->key), "%d", (int) (number % KEYS));
	len = snprintf(record->value, sizeof(record->value),
				   "{\"id\":%" PRId64 ",\"customer\":%d,\"client\":0,\"n\":%" PRId64 ",\"note\":\"",
				   number, (int) (number % KEYS), number);
	while (len < VALUE_BYTES - 2)
		record->value[len++] = 'x';
	record->value[len++] = '"';
	record->value[len++] = '}';
	record->value_len = len;
}

/* The id counts, and looks like a message's */
static void
make_id(char *id, int64_t number)
{
	snprintf(id, 37, "019a%04x-%04x-7abc-8def-0123%08x", (unsigned) (number >> 48) & 0xffff,
			 (unsigned) (number >> 32) & 0xffff, (unsigned) number);
}

static void
produce(rd_kafka_t *rk, const char *topic, const Record *record, const char *id)
{
	rd_kafka_resp_err_t err;

	while ((err = rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(topic),
									RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
									RD_KAFKA_V_KEY(record->key, record->key_len),
									RD_KAFKA_V_VALUE((void *) record->value, record->value_len),
									RD_KAFKA_V_HEADER("id", id, 36),
									RD_KAFKA_V_HEADER("op", "c", 1),
									RD_KAFKA_V_END)) == RD_KAFKA_RESP_ERR__QUEUE_FULL)
		rd_kafka_poll(rk, 100);
	if (err)
		die("produce: %s", rd_kafka_err2str(err));
}

static void
finish(rd_kafka_t *rk)
{
	while (rd_kafka_outq_len(rk) > 0)
		rd_kafka_poll(rk, 100);
	if (undelivered > 0)
		die("%" PRId64 " records not delivered", undelivered);
}

/* The connections and the producer's id aren't what is measured. */
static void
warm_up(rd_kafka_t *rk, const char *topic)
{
	const struct rd_kafka_metadata *metadata;
	rd_kafka_topic_t *handle = rd_kafka_topic_new(rk, topic, NULL);
	rd_kafka_resp_err_t err = rd_kafka_metadata(rk, 0, handle, &metadata, 30000);

	if (err)
		die("metadata: %s", rd_kafka_err2str(err));
	rd_kafka_metadata_destroy(metadata);
	rd_kafka_topic_destroy(handle);
}

/* ---------- commands ---------- */

static void
cmd_produce(int argc, char **argv)
{
	int64_t		n = argc >= 2 ? atoll(argv[1]) : 0;
	int64_t		first = argc == 3 ? atoll(argv[2]) : 0;
	rd_kafka_t *rk = new_producer("5");
	Record	   *records = calloc(DISTINCT, sizeof(*records));
	char		id[37];
	int64_t		start;
	int64_t		cpu;

	if (n < 1)
		die("produce TOPIC N [FIRST]");
	for (int i = 0; i < DISTINCT; i++)
		make_record(&records[i], i);
	warm_up(rk, argv[0]);

	start = clock_us(CLOCK_MONOTONIC);
	cpu = cpu_us();
	for (int64_t i = 0; i < n; i++)
	{
		make_id(id, first + i);
		produce(rk, argv[0], &records[i % DISTINCT], id);
		if (i % 1000 == 0)
			rd_kafka_poll(rk, 0);
	}
	finish(rk);
	printf("%.6f %.6f\n", (clock_us(CLOCK_MONOTONIC) - start) / 1e6, (cpu_us() - cpu) / 1e6);
	free(records);
	rd_kafka_destroy(rk);
}

static void
cmd_pace(int argc, char **argv)
{
	double		rate = argc == 3 ? atof(argv[1]) : 0;
	int64_t		n = argc == 3 ? (int64_t) (rate * atof(argv[2])) : 0;
	rd_kafka_t *rk = new_producer("0");
	char		id[37];
	int64_t		start;

	if (n < 1)
		die("pace TOPIC RATE SECONDS");
	warm_up(rk, argv[0]);
	start = clock_us(CLOCK_MONOTONIC);
	for (int64_t i = 0; i < n; i++)
	{
		int64_t		due = start + (int64_t) (i * 1e6 / rate);
		Record		record;
		int64_t		now;

		while ((now = clock_us(CLOCK_MONOTONIC)) < due)
		{
			struct timespec ts = {0, (due - now) * 1000};

			nanosleep(&ts, NULL);
		}
		make_record(&record, i);
		make_id(id, i);
		printf("0 %" PRId64 " %" PRId64 "\n", i, clock_us(CLOCK_REALTIME));
		produce(rk, argv[0], &record, id);
		rd_kafka_poll(rk, 0);
	}
	finish(rk);
	rd_kafka_destroy(rk);
}

static void
cmd_results(int argc, char **argv)
{
	rd_kafka_t *rk = new_producer("5");
	char		id[64];

	if (argc != 1)
		die("results TOPIC");
	while (fgets(id, sizeof(id), stdin) != NULL)
	{
		size_t		len = strcspn(id, "\n");
		rd_kafka_resp_err_t err;

		while ((err = rd_kafka_producev(rk, RD_KAFKA_V_TOPIC(argv[0]),
										RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
										RD_KAFKA_V_KEY(id, len),
										RD_KAFKA_V_VALUE((void *) "SUCCESS", 7),
										RD_KAFKA_V_END)) == RD_KAFKA_RESP_ERR__QUEUE_FULL)
			rd_kafka_poll(rk, 100);
		if (err)
			die("produce: %s", rd_kafka_err2str(err));
		rd_kafka_poll(rk, 0);
	}
	finish(rk);
	rd_kafka_destroy(rk);
}

/* ---------- watch ---------- */

static void
on_signal(int signo)
{
	(void) signo;
	stopping = 1;
}

static int64_t
field(const char *value, size_t len, const char *name)
{
	const char *found = memmem(value, len, name, strlen(name));

	return found == NULL ? -1 : atoll(found + strlen(name));
}

/* From the end of each partition; returns how many there are */
static int
start_at_end(rd_kafka_t *rk, rd_kafka_topic_t *handle, rd_kafka_queue_t *queue)
{
	const struct rd_kafka_metadata *metadata;
	rd_kafka_resp_err_t err = rd_kafka_metadata(rk, 0, handle, &metadata, 30000);
	int			n;

	if (err || metadata->topics[0].err)
		die("metadata: %s", rd_kafka_err2str(err ? err : metadata->topics[0].err));
	n = metadata->topics[0].partition_cnt;
	if (n > MAX_PARTITIONS)
		die("too many partitions");
	for (int i = 0; i < n; i++)
	{
		if (rd_kafka_consume_start_queue(handle, i, RD_KAFKA_OFFSET_END, queue) != 0)
			die("consume: %s", rd_kafka_err2str(rd_kafka_last_error()));
	}
	rd_kafka_metadata_destroy(metadata);
	return n;
}

static void
cmd_watch(int argc, char **argv)
{
	const char *const properties[] = {
		"enable.partition.eof", "true",
		"fetch.wait.max.ms", "100",
		"enable.auto.commit", "false",
		NULL
	};
	rd_kafka_t *rk = new_client(RD_KAFKA_CONSUMER, properties);
	rd_kafka_topic_t *handle;
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	bool		at_end[MAX_PARTITIONS] = {false};
	int			missing;

	if (argc != 1)
		die("watch TOPIC");
	handle = rd_kafka_topic_new(rk, argv[0], NULL);
	missing = start_at_end(rk, handle, queue);
	signal(SIGTERM, on_signal);
	while (!stopping)
	{
		rd_kafka_message_t *message = rd_kafka_consume_queue(queue, 100);

		if (message == NULL)
		{
			fflush(stdout);
			continue;
		}
		if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF && !at_end[message->partition])
		{
			at_end[message->partition] = true;
			if (--missing == 0)
			{
				printf("ready\n");
				fflush(stdout);
			}
		}
		else if (!message->err)
			printf("%" PRId64 " %" PRId64 " %" PRId64 "\n",
				   field(message->payload, message->len, "\"client\":"),
				   field(message->payload, message->len, "\"n\":"),
				   clock_us(CLOCK_REALTIME));
		rd_kafka_message_destroy(message);
	}
	fflush(stdout);

	/* Nothing is left to be told to anyone, and an orderly end takes time. */
	_exit(0);
}

int
main(int argc, char **argv)
{
	static const struct
	{
		const char *name;
		void		(*run) (int argc, char **argv);
	}			commands[] = {
		{"produce", cmd_produce},
		{"pace", cmd_pace},
		{"results", cmd_results},
		{"watch", cmd_watch},
	};

	if (argc >= 3)
	{
		bootstrap = argv[1];
		for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		{
			if (strcmp(argv[2], commands[i].name) == 0)
			{
				commands[i].run(argc - 3, argv + 3);
				return 0;
			}
		}
	}
	fprintf(stderr, "usage: kbench BOOTSTRAP produce|pace|results|watch TOPIC ...\n");
	return 2;
}
