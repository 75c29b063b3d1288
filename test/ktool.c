/*-------------------------------------------------------------------------
 *
 * ktool.c
 *	  What the tests and the demo want of a Kafka client: topics, access
 *	  rights, records in and out, and the service at the other end.
 *
 *	ktool -b BOOTSTRAP [-X PROPERTY=VALUE]... [-v] COMMAND ...
 *
 *	wait-ready [SECONDS]			until a broker answers; prints the cluster's id
 *	create-topic NAME PARTITIONS [RF | @BROKER,...] [CONFIG=VALUE]...
 *									@: the one broker of each partition
 *	delete-topic NAME
 *	add-partitions NAME TOTAL
 *	alter-config NAME CONFIG=VALUE...		replaces all of the topic's settings
 *	acl-add PRINCIPAL allow|deny OPERATION topic|group|cluster NAME [prefixed]
 *	acl-remove PRINCIPAL any|allow|deny OPERATION topic|group|cluster NAME [prefixed]
 *	topics							names, partitions and leaders
 *	watermarks TOPIC PARTITION		low and high
 *	produce TOPIC [commit | abort]	lines of PARTITION, KEY, VALUE and headers
 *									NAME=VALUE, parted by tabs; see read_field();
 *									in a transaction that ends so
 *	consume TOPIC [-o beginning|OFFSET] [-p PARTITION] [-c COUNT] [-f] [-t SECONDS]
 *									one JSON object a record, to the end of all
 *									partitions; -f: go on until -c or -t
 *	rtt TOPIC N [MS]				acknowledged one by one, so many milliseconds
 *									apart; p50, p99 and max in us
 *	service IN RESULT [--fail-every N] [--by-header] [--json]
 *									an inventory without a database
 *
 * Commands that change a topic return when the broker's metadata shows it.
 *
 *-------------------------------------------------------------------------
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <librdkafka/rdkafka.h>

#define MAX_PROPERTIES		64
#define MAX_HEADERS			64
#define REQUEST_TIMEOUT		10000	/* ms */

static const char *bootstrap;
static char *properties[MAX_PROPERTIES];
static int	nproperties;
static bool verbose;
static char last_error[512];	/* what librdkafka last complained of */

static void die(const char *fmt,...) __attribute__((noreturn, format(printf, 1, 2)));

static void
die(const char *fmt,...)
{
	va_list		args;

	fflush(stdout);
	fprintf(stderr, "ktool: ");
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	if (last_error[0] != '\0')
		fprintf(stderr, " (%s)", last_error);
	fputc('\n', stderr);
	_exit(1);
}

static int64_t
now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static void
pause_ms(int ms)
{
	struct timespec ts = {ms / 1000, (ms % 1000) * 1000000L};

	nanosleep(&ts, NULL);
}

static int64_t
number(const char *text)
{
	char	   *end;
	int64_t		value;

	errno = 0;
	value = strtoll(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0')
		die("not a number: %s", text);
	return value;
}

/* ---------- clients ---------- */

static void
on_error(rd_kafka_t *rk, int err, const char *reason, void *opaque)
{
	(void) rk;
	(void) err;
	(void) opaque;
	snprintf(last_error, sizeof(last_error), "%s", reason);
}

static void
on_log(const rd_kafka_t *rk, int level, const char *fac, const char *buf)
{
	(void) rk;
	if (verbose)
		fprintf(stderr, "ktool: %d %s %s\n", level, fac, buf);
}

static void
set(rd_kafka_conf_t *conf, const char *name, const char *value)
{
	char		error[512];

	if (rd_kafka_conf_set(conf, name, value, error, sizeof(error)) != RD_KAFKA_CONF_OK)
		die("%s", error);
}

static rd_kafka_conf_t *
new_conf(void)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	set(conf, "bootstrap.servers", bootstrap);
	set(conf, "client.id", "ktool");

	/* A broker that is being restarted is the normal case here. */
	set(conf, "reconnect.backoff.ms", "20");
	set(conf, "reconnect.backoff.max.ms", "200");
	rd_kafka_conf_set_error_cb(conf, on_error);
	rd_kafka_conf_set_log_cb(conf, on_log);
	return conf;
}

/* What the command line says comes last, so that it wins. */
static rd_kafka_t *
new_client(rd_kafka_type_t type, rd_kafka_conf_t *conf)
{
	rd_kafka_t *rk;
	char		error[512];

	for (int i = 0; i < nproperties; i++)
	{
		char	   *name = strdup(properties[i]);
		char	   *value = strchr(name, '=');

		if (value == NULL)
			die("-X wants PROPERTY=VALUE: %s", name);
		*value++ = '\0';
		set(conf, name, value);
		free(name);
	}
	rk = rd_kafka_new(type, conf, error, sizeof(error));
	if (rk == NULL)
		die("%s", error);
	return rk;
}

/*
 * For requests and for reading.  A consumer, also where nothing is read: the
 * metadata request of a producer makes the topic that it asks for.
 */
static rd_kafka_t *
new_consumer(void)
{
	rd_kafka_conf_t *conf = new_conf();
	rd_kafka_t *rk;

	set(conf, "group.id", "ktool");
	set(conf, "enable.auto.commit", "false");
	set(conf, "enable.partition.eof", "true");
	set(conf, "auto.offset.reset", "error");
	set(conf, "fetch.wait.max.ms", "10");
	set(conf, "fetch.error.backoff.ms", "20");
	rk = new_client(RD_KAFKA_CONSUMER, conf);
	rd_kafka_poll_set_consumer(rk);
	return rk;
}

static const struct rd_kafka_metadata_topic *
find_topic(const struct rd_kafka_metadata *metadata, const char *name)
{
	for (int i = 0; i < metadata->topic_cnt; i++)
	{
		if (strcmp(metadata->topics[i].topic, name) == 0)
			return &metadata->topics[i];
	}
	return NULL;
}

/* How many partitions a topic has, 0 if there is none; -1: no answer. */
static int
partitions_of(rd_kafka_t *rk, const char *name, bool with_leaders)
{
	const struct rd_kafka_metadata *metadata;
	const struct rd_kafka_metadata_topic *topic;
	int			n = 0;

	/* All topics: to ask for one by its name can make it. */
	if (rd_kafka_metadata(rk, 1, NULL, &metadata, REQUEST_TIMEOUT) != 0)
		return -1;
	topic = find_topic(metadata, name);
	if (topic != NULL && topic->err == 0)
	{
		for (int i = 0; i < topic->partition_cnt; i++)
			n += !with_leaders || topic->partitions[i].leader >= 0;
	}
	rd_kafka_metadata_destroy(metadata);
	return n;
}

static void
wait_for_partitions(rd_kafka_t *rk, const char *name, int expected)
{
	int64_t		deadline = now_us() + 30 * 1000000LL;

	while (partitions_of(rk, name, true) != expected)
	{
		if (now_us() > deadline)
			die("topic %s has not got %d partitions", name, expected);
		pause_ms(20);
	}
}

/*
 * Tell the client of a topic before the first metadata request.  If it only
 * learns of it afterwards, the leaders' connections wait for the next tick of
 * the brokers' threads, most of a second.
 */
static void
announce(rd_kafka_t *rk, const char *name)
{
	const struct rd_kafka_metadata *metadata;
	rd_kafka_topic_t *topic = rd_kafka_topic_new(rk, name, NULL);

	if (topic == NULL)
		die("%s: %s", name, rd_kafka_err2name(rd_kafka_last_error()));
	if (rd_kafka_metadata(rk, 0, topic, &metadata, 2000) == 0)
		rd_kafka_metadata_destroy(metadata);
}

/* ---------- administration ---------- */

static void
check_topics(const char *what, const rd_kafka_topic_result_t **results, size_t n)
{
	for (size_t i = 0; i < n; i++)
	{
		if (rd_kafka_topic_result_error(results[i]) != 0)
			die("%s %s: %s", what, rd_kafka_topic_result_name(results[i]),
				rd_kafka_err2name(rd_kafka_topic_result_error(results[i])));
	}
}

/* Wait for the answer to an admin request, and end unless it is a success. */
static void
finish(const char *what, rd_kafka_queue_t *queue)
{
	rd_kafka_event_t *event = rd_kafka_queue_poll(queue, 3 * REQUEST_TIMEOUT);
	const rd_kafka_topic_result_t **topics;
	size_t		n;

	if (event == NULL)
		die("%s: no answer", what);
	if (rd_kafka_event_error(event) != 0)
		die("%s: %s: %s", what, rd_kafka_err2name(rd_kafka_event_error(event)),
			rd_kafka_event_error_string(event));

	switch (rd_kafka_event_type(event))
	{
		case RD_KAFKA_EVENT_CREATETOPICS_RESULT:
			topics = rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &n);
			check_topics(what, topics, n);
			break;
		case RD_KAFKA_EVENT_DELETETOPICS_RESULT:
			topics = rd_kafka_DeleteTopics_result_topics(rd_kafka_event_DeleteTopics_result(event), &n);
			check_topics(what, topics, n);
			break;
		case RD_KAFKA_EVENT_CREATEPARTITIONS_RESULT:
			topics = rd_kafka_CreatePartitions_result_topics(rd_kafka_event_CreatePartitions_result(event), &n);
			check_topics(what, topics, n);
			break;
		case RD_KAFKA_EVENT_ALTERCONFIGS_RESULT:
			{
				const rd_kafka_ConfigResource_t **resources =
					rd_kafka_AlterConfigs_result_resources(rd_kafka_event_AlterConfigs_result(event), &n);

				for (size_t i = 0; i < n; i++)
				{
					if (rd_kafka_ConfigResource_error(resources[i]) != 0)
						die("%s: %s", what, rd_kafka_ConfigResource_error_string(resources[i]));
				}
				break;
			}
		case RD_KAFKA_EVENT_CREATEACLS_RESULT:
			{
				const rd_kafka_acl_result_t **results =
					rd_kafka_CreateAcls_result_acls(rd_kafka_event_CreateAcls_result(event), &n);

				for (size_t i = 0; i < n; i++)
				{
					if (rd_kafka_acl_result_error(results[i]) != NULL)
						die("%s: %s", what, rd_kafka_error_string(rd_kafka_acl_result_error(results[i])));
				}
				break;
			}
		case RD_KAFKA_EVENT_DELETEACLS_RESULT:
			{
				const rd_kafka_DeleteAcls_result_response_t **responses =
					rd_kafka_DeleteAcls_result_responses(rd_kafka_event_DeleteAcls_result(event), &n);

				for (size_t i = 0; i < n; i++)
				{
					size_t		matched;

					if (rd_kafka_DeleteAcls_result_response_error(responses[i]) != NULL)
						die("%s: %s", what, rd_kafka_error_string(rd_kafka_DeleteAcls_result_response_error(responses[i])));
					rd_kafka_DeleteAcls_result_response_matching_acls(responses[i], &matched);
					printf("removed %zu\n", matched);
				}
				break;
			}
		default:
			die("%s: unexpected %s", what, rd_kafka_event_name(event));
	}
	rd_kafka_event_destroy(event);
}

/* One broker for each partition, of a list such as "@1,2" */
static void
assign_brokers(rd_kafka_NewTopic_t *topic, char *list, int partitions)
{
	char		error[512];
	char	   *save;
	char	   *broker = strtok_r(list + 1, ",", &save);

	for (int p = 0; p < partitions; p++, broker = strtok_r(NULL, ",", &save))
	{
		int32_t		id;

		if (broker == NULL)
			die("no broker for partition %d", p);
		id = number(broker);
		if (rd_kafka_NewTopic_set_replica_assignment(topic, p, &id, 1, error, sizeof(error)) != 0)
			die("%s", error);
	}
}

static void
cmd_create_topic(int argc, char **argv)
{
	rd_kafka_t *rk = new_consumer();
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	rd_kafka_NewTopic_t *topic;
	int			partitions = number(argv[1]);
	int			rf = 1;
	char	   *brokers = NULL;
	int			arg = 2;
	char		error[512];

	if (argc > arg && argv[arg][0] == '@')
	{
		brokers = argv[arg++];
		rf = -1;
	}
	else if (argc > arg && strchr(argv[arg], '=') == NULL)
		rf = number(argv[arg++]);
	topic = rd_kafka_NewTopic_new(argv[0], partitions, rf, error, sizeof(error));
	if (topic == NULL)
		die("%s", error);
	if (brokers != NULL)
		assign_brokers(topic, brokers, partitions);
	for (; arg < argc; arg++)
	{
		char	   *value = strchr(argv[arg], '=');

		if (value == NULL)
			die("not CONFIG=VALUE: %s", argv[arg]);
		*value++ = '\0';
		rd_kafka_NewTopic_set_config(topic, argv[arg], value);
	}
	rd_kafka_CreateTopics(rk, &topic, 1, NULL, queue);
	finish("create-topic", queue);
	wait_for_partitions(rk, argv[0], partitions);
}

static void
cmd_delete_topic(int argc, char **argv)
{
	rd_kafka_t *rk = new_consumer();
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	rd_kafka_DeleteTopic_t *topic = rd_kafka_DeleteTopic_new(argv[0]);

	(void) argc;
	rd_kafka_DeleteTopics(rk, &topic, 1, NULL, queue);
	finish("delete-topic", queue);
	wait_for_partitions(rk, argv[0], 0);
}

static void
cmd_add_partitions(int argc, char **argv)
{
	rd_kafka_t *rk = new_consumer();
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	int			total = number(argv[1]);
	int			leaderless = partitions_of(rk, argv[0], false) - partitions_of(rk, argv[0], true);
	rd_kafka_NewPartitions_t *partitions;
	char		error[512];

	(void) argc;
	partitions = rd_kafka_NewPartitions_new(argv[0], total, error, sizeof(error));
	if (partitions == NULL)
		die("%s", error);
	rd_kafka_CreatePartitions(rk, &partitions, 1, NULL, queue);
	finish("add-partitions", queue);
	wait_for_partitions(rk, argv[0], total - leaderless);
}

static void
cmd_alter_config(int argc, char **argv)
{
	rd_kafka_t *rk = new_consumer();
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	rd_kafka_ConfigResource_t *resource = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, argv[0]);

	for (int i = 1; i < argc; i++)
	{
		char	   *value = strchr(argv[i], '=');

		if (value == NULL)
			die("not CONFIG=VALUE: %s", argv[i]);
		*value++ = '\0';
		rd_kafka_ConfigResource_set_config(resource, argv[i], value);
	}
	rd_kafka_AlterConfigs(rk, &resource, 1, NULL, queue);
	finish("alter-config", queue);
}

static rd_kafka_AclOperation_t
acl_operation(const char *name)
{
	for (int op = RD_KAFKA_ACL_OPERATION_ANY; op < RD_KAFKA_ACL_OPERATION__CNT; op++)
	{
		if (strcasecmp(name, rd_kafka_AclOperation_name(op)) == 0)
			return op;
	}
	die("unknown operation %s", name);
}

static rd_kafka_ResourceType_t
acl_resource(const char *name)
{
	if (strcmp(name, "topic") == 0)
		return RD_KAFKA_RESOURCE_TOPIC;
	if (strcmp(name, "group") == 0)
		return RD_KAFKA_RESOURCE_GROUP;
	if (strcmp(name, "cluster") == 0)
		return RD_KAFKA_RESOURCE_BROKER;	/* the same number */
	die("unknown resource %s", name);
}

static rd_kafka_AclPermissionType_t
acl_permission(const char *name)
{
	if (strcmp(name, "allow") == 0)
		return RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW;
	if (strcmp(name, "deny") == 0)
		return RD_KAFKA_ACL_PERMISSION_TYPE_DENY;
	if (strcmp(name, "any") == 0)
		return RD_KAFKA_ACL_PERMISSION_TYPE_ANY;
	die("neither allow nor deny: %s", name);
}

static void
change_acl(bool add, int argc, char **argv)
{
	rd_kafka_t *rk = new_consumer();
	rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
	rd_kafka_AclPermissionType_t permission = acl_permission(argv[1]);
	rd_kafka_AclOperation_t operation = acl_operation(argv[2]);
	rd_kafka_ResourceType_t resource = acl_resource(argv[3]);
	rd_kafka_ResourcePatternType_t pattern = RD_KAFKA_RESOURCE_PATTERN_LITERAL;
	rd_kafka_AclBinding_t *acl;
	char		error[512];

	if (argc > 5 && strcmp(argv[5], "prefixed") == 0)
		pattern = RD_KAFKA_RESOURCE_PATTERN_PREFIXED;
	acl = add ?
		rd_kafka_AclBinding_new(resource, argv[4], pattern, argv[0], "*",
								operation, permission, error, sizeof(error)) :
		rd_kafka_AclBindingFilter_new(resource, argv[4], pattern, argv[0], "*",
									  operation, permission, error, sizeof(error));
	if (acl == NULL)
		die("%s", error);
	if (add)
		rd_kafka_CreateAcls(rk, &acl, 1, NULL, queue);
	else
		rd_kafka_DeleteAcls(rk, &acl, 1, NULL, queue);
	finish(add ? "acl-add" : "acl-remove", queue);
}

static void
cmd_acl_add(int argc, char **argv)
{
	change_acl(true, argc, argv);
}

static void
cmd_acl_remove(int argc, char **argv)
{
	change_acl(false, argc, argv);
}

static void
cmd_wait_ready(int argc, char **argv)
{
	rd_kafka_t *rk = new_consumer();
	int64_t		deadline = now_us() + (argc > 0 ? number(argv[0]) : 60) * 1000000LL;
	const struct rd_kafka_metadata *metadata;
	char	   *id;

	for (;;)
	{
		/* A controller that has no broker yet may answer with none. */
		if (rd_kafka_metadata(rk, 1, NULL, &metadata, 500) == 0)
		{
			int			brokers = metadata->broker_cnt;

			rd_kafka_metadata_destroy(metadata);
			if (brokers > 0)
				break;
		}
		if (now_us() > deadline)
			die("no broker answered");
		pause_ms(20);
	}
	id = rd_kafka_clusterid(rk, 5000);
	printf("%s\n", id != NULL ? id : "");
}

static void
cmd_topics(int argc, char **argv)
{
	rd_kafka_t *rk = new_consumer();
	const struct rd_kafka_metadata *metadata;
	rd_kafka_resp_err_t err;

	(void) argc;
	(void) argv;
	err = rd_kafka_metadata(rk, 1, NULL, &metadata, REQUEST_TIMEOUT);
	if (err != 0)
		die("topics: %s", rd_kafka_err2name(err));
	for (int i = 0; i < metadata->topic_cnt; i++)
	{
		const struct rd_kafka_metadata_topic *topic = &metadata->topics[i];

		printf("%s\t%d\t", topic->topic, topic->partition_cnt);
		for (int p = 0; p < topic->partition_cnt; p++)
			printf("%s%d", p > 0 ? "," : "", topic->partitions[p].leader);
		putchar('\n');
	}
}

static void
cmd_watermarks(int argc, char **argv)
{
	rd_kafka_t *rk = new_consumer();
	int64_t		low,
				high;
	rd_kafka_resp_err_t err;

	(void) argc;
	err = rd_kafka_query_watermark_offsets(rk, argv[0], number(argv[1]),
										   &low, &high, REQUEST_TIMEOUT);
	if (err != 0)
		die("watermarks: %s", rd_kafka_err2name(err));
	printf("%" PRId64 " %" PRId64 "\n", low, high);
}

/* ---------- records in ---------- */

typedef struct Field
{
	char	   *data;			/* NULL: the null key, value or header */
	size_t		len;
} Field;

static long undelivered;
static bool print_deliveries;

static void
on_delivery(rd_kafka_t *rk, const rd_kafka_message_t *message, void *opaque)
{
	(void) rk;
	(void) opaque;
	if (message->err != 0)
	{
		undelivered++;
		fprintf(stderr, "ktool: not delivered: %s\n", rd_kafka_err2name(message->err));
	}
	else if (print_deliveries)
		printf("{\"partition\": %" PRId32 ", \"offset\": %" PRId64 "}\n",
			   message->partition, message->offset);
}

static rd_kafka_t *
new_producer(void)
{
	rd_kafka_conf_t *conf = new_conf();

	set(conf, "enable.idempotence", "true");
	set(conf, "linger.ms", "0");
	set(conf, "message.timeout.ms", "30000");
	set(conf, "message.max.bytes", "20000000");
	rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
	return new_client(RD_KAFKA_PRODUCER, conf);
}

/*
 * Undo the escapes of one field, in place: \N alone is null, and within a
 * field stand \t, \n, \r, \\ and \xHH.
 */
static Field
read_field(char *text)
{
	Field		field = {text, 0};
	char	   *out = text;

	if (strcmp(text, "\\N") == 0)
		return (Field) {NULL, 0};

	for (const char *in = text; *in != '\0'; in++)
	{
		unsigned int byte;

		if (*in != '\\')
		{
			*out++ = *in;
			continue;
		}
		switch (*++in)
		{
			case 't':
				*out++ = '\t';
				break;
			case 'n':
				*out++ = '\n';
				break;
			case 'r':
				*out++ = '\r';
				break;
			case '\\':
				*out++ = '\\';
				break;
			case 'x':
				if (!isxdigit((unsigned char) in[1]) ||
					!isxdigit((unsigned char) in[2]) ||
					sscanf(in + 1, "%2x", &byte) != 1)
					die("\\x wants two digits");
				*out++ = (char) byte;
				in += 2;
				break;
			default:
				die("unknown escape in produce's input");
		}
	}
	field.len = out - text;
	*out = '\0';
	return field;
}

static void
produce(rd_kafka_t *rk, const char *topic, int32_t partition, Field key,
		Field value, rd_kafka_headers_t *headers)
{
	for (;;)
	{
		rd_kafka_headers_t *copy = headers ? rd_kafka_headers_copy(headers) : NULL;
		rd_kafka_vu_t vus[] = {
			{.vtype = RD_KAFKA_VTYPE_TOPIC,.u.cstr = topic},
			{.vtype = RD_KAFKA_VTYPE_PARTITION,.u.i32 = partition},
			{.vtype = RD_KAFKA_VTYPE_MSGFLAGS,.u.i = RD_KAFKA_MSG_F_COPY},
			{.vtype = RD_KAFKA_VTYPE_KEY,.u.mem = {key.data, key.len}},
			{.vtype = RD_KAFKA_VTYPE_VALUE,.u.mem = {value.data, value.len}},
			{.vtype = RD_KAFKA_VTYPE_HEADERS,.u.headers = copy},
		};
		rd_kafka_error_t *error;
		rd_kafka_resp_err_t err;

		error = rd_kafka_produceva(rk, vus, copy != NULL ? 6 : 5);
		if (error == NULL)
			return;
		err = rd_kafka_error_code(error);
		rd_kafka_error_destroy(error);
		if (copy != NULL)
			rd_kafka_headers_destroy(copy);
		if (err != RD_KAFKA_RESP_ERR__QUEUE_FULL)
			die("produce: %s", rd_kafka_err2name(err));
		rd_kafka_poll(rk, 100);
	}
}

static void
produce_line(rd_kafka_t *rk, const char *topic, char *line)
{
	char	   *fields[MAX_HEADERS + 3];
	int			n = 0;
	rd_kafka_headers_t *headers = NULL;

	for (char *next = line; next != NULL && n < MAX_HEADERS + 3;)
		fields[n++] = strsep(&next, "\t");
	if (n < 3)
		die("produce wants lines of PARTITION, KEY and VALUE");

	if (n > 3)
		headers = rd_kafka_headers_new(n - 3);
	for (int i = 3; i < n; i++)
	{
		char	   *value = strchr(fields[i], '=');
		Field		name,
					content;

		if (value == NULL)
			die("a header is NAME=VALUE");
		*value++ = '\0';
		name = read_field(fields[i]);
		content = read_field(value);
		rd_kafka_header_add(headers, name.data, name.len, content.data,
							content.data != NULL ? (ssize_t) content.len : 0);
	}
	produce(rk, topic,
			*fields[0] == '\0' ? RD_KAFKA_PARTITION_UA : number(fields[0]),
			read_field(fields[1]), read_field(fields[2]), headers);
	if (headers != NULL)
		rd_kafka_headers_destroy(headers);
}

static void
in_transaction(rd_kafka_error_t *error)
{
	if (error != NULL)
		die("transaction: %s", rd_kafka_error_string(error));
}

static void
cmd_produce(int argc, char **argv)
{
	rd_kafka_t *rk = new_producer();
	char	   *line = NULL;
	size_t		size = 0;
	ssize_t		len;

	if (argc > 1)
	{
		in_transaction(rd_kafka_init_transactions(rk, 30000));
		in_transaction(rd_kafka_begin_transaction(rk));
	}
	announce(rk, argv[0]);
	print_deliveries = true;
	while ((len = getline(&line, &size, stdin)) >= 0)
	{
		if (len > 0 && line[len - 1] == '\n')
			line[len - 1] = '\0';
		produce_line(rk, argv[0], line);
		rd_kafka_poll(rk, 0);
	}
	if (rd_kafka_flush(rk, 40000) != 0)
		die("produce: records without an answer");
	if (undelivered > 0)
		die("produce: %ld not delivered", undelivered);
	if (argc > 1)
		in_transaction(strcmp(argv[1], "commit") == 0 ?
					   rd_kafka_commit_transaction(rk, 30000) :
					   rd_kafka_abort_transaction(rk, 30000));
}

static int
compare_times(const void *a, const void *b)
{
	int64_t		x = *(const int64_t *) a;
	int64_t		y = *(const int64_t *) b;

	return (x > y) - (x < y);
}

static void
cmd_rtt(int argc, char **argv)
{
	rd_kafka_t *rk = new_producer();
	int			n = number(argv[1]);
	int			apart = argc > 2 ? number(argv[2]) : 0;
	int64_t    *times;
	Field		none = {NULL, 0};
	Field		value = {"x", 1};

	if (n < 1)
		die("rtt wants a number above 0");
	times = calloc(n, sizeof(*times));
	announce(rk, argv[0]);

	/* The first one pays for the connections and the producer's id. */
	for (int i = -1; i < n; i++)
	{
		int64_t		start = now_us();

		produce(rk, argv[0], RD_KAFKA_PARTITION_UA, none, value, NULL);
		while (rd_kafka_outq_len(rk) > 0)
			rd_kafka_poll(rk, 1000);
		if (undelivered > 0)
			die("rtt: not delivered");
		if (i >= 0)
			times[i] = now_us() - start;
		if (apart > 0)
			pause_ms(apart);
	}
	qsort(times, n, sizeof(*times), compare_times);
	printf("p50 %" PRId64 " p99 %" PRId64 " max %" PRId64 "\n",
		   times[n / 2], times[(int) (n * 0.99)], times[n - 1]);
}

/* ---------- records out ---------- */

static bool
is_utf8(const unsigned char *s, size_t len)
{
	size_t		i = 0;

	while (i < len)
	{
		unsigned char c = s[i];
		int			more = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 :
			c >= 0xe0 && c < 0xf0 ? 2 : c >= 0xf0 && c < 0xf5 ? 3 : -1;

		if (more < 0 || i + more >= len)
			return false;
		for (int k = 1; k <= more; k++)
		{
			if ((s[i + k] & 0xc0) != 0x80)
				return false;
		}
		/* overlong, surrogates, above U+10FFFF */
		if ((c == 0xe0 && s[i + 1] < 0xa0) || (c == 0xed && s[i + 1] > 0x9f) ||
			(c == 0xf0 && s[i + 1] < 0x90) || (c == 0xf4 && s[i + 1] > 0x8f))
			return false;
		i += more + 1;
	}
	return true;
}

/* Bytes as a JSON string, or as {"hex": "..."} where they aren't UTF-8. */
static void
print_bytes(const void *data, size_t len)
{
	const unsigned char *bytes = data;

	if (bytes == NULL)
	{
		printf("null");
		return;
	}
	if (!is_utf8(bytes, len))
	{
		printf("{\"hex\": \"");
		for (size_t i = 0; i < len; i++)
			printf("%02x", bytes[i]);
		printf("\"}");
		return;
	}
	putchar('"');
	for (size_t i = 0; i < len; i++)
	{
		if (bytes[i] == '"' || bytes[i] == '\\')
			printf("\\%c", bytes[i]);
		else if (bytes[i] < 0x20)
			printf("\\u%04x", bytes[i]);
		else
			putchar(bytes[i]);
	}
	putchar('"');
}

/* librdkafka hands out an empty value as a pointer, a null one as NULL. */
static void
print_record(const rd_kafka_message_t *message)
{
	rd_kafka_headers_t *headers;
	const char *name;
	const void *value;
	size_t		len;

	printf("{\"partition\": %" PRId32 ", \"offset\": %" PRId64 ", \"timestamp\": %" PRId64,
		   message->partition, message->offset,
		   rd_kafka_message_timestamp(message, NULL));
	printf(", \"key\": ");
	print_bytes(message->key, message->key_len);
	printf(", \"value\": ");
	print_bytes(message->payload, message->len);
	printf(", \"headers\": [");
	if (rd_kafka_message_headers(message, &headers) == 0)
	{
		for (size_t i = 0; rd_kafka_header_get_all(headers, i, &name, &value, &len) == 0; i++)
		{
			printf("%s[", i > 0 ? ", " : "");
			print_bytes(name, strlen(name));
			printf(", ");
			print_bytes(value, len);
			printf("]");
		}
	}
	printf("]}\n");
}

/* Read all partitions of a topic, or one, from an offset. */
static int
assign(rd_kafka_t *rk, const char *topic, int only, int64_t offset)
{
	rd_kafka_topic_partition_list_t *list;
	int			n = partitions_of(rk, topic, false);
	rd_kafka_resp_err_t err;
	int			count;

	if (n <= 0)
		return n;
	list = rd_kafka_topic_partition_list_new(n);
	for (int p = 0; p < n; p++)
	{
		if (only < 0 || only == p)
			rd_kafka_topic_partition_list_add(list, topic, p)->offset = offset;
	}
	count = list->cnt;
	err = rd_kafka_assign(rk, list);
	if (err != 0)
		die("assign: %s", rd_kafka_err2name(err));
	rd_kafka_topic_partition_list_destroy(list);
	return count;
}

static void
cmd_consume(int argc, char **argv)
{
	rd_kafka_t *rk = new_consumer();
	int64_t		offset = RD_KAFKA_OFFSET_BEGINNING;
	int			only = -1;
	int			open;
	int64_t		count = -1;
	bool		follow = false;
	int64_t		deadline = now_us() + 60 * 1000000LL;
	int			opt;

	/* getopt() takes the topic for the program; 0 makes it start afresh. */
	optind = 0;
	while ((opt = getopt(argc, argv, "o:p:c:ft:e")) != -1)
	{
		switch (opt)
		{
			case 'o':
				if (strncmp(optarg, "begin", 5) != 0)
					offset = number(optarg);
				break;
			case 'p':
				only = number(optarg);
				break;
			case 'c':
				count = number(optarg);
				break;
			case 'f':
				follow = true;
				break;
			case 't':
				deadline = now_us() + number(optarg) * 1000000LL;
				break;
			case 'e':
				break;			/* the default */
			default:
				die("consume: unknown option");
		}
	}

	announce(rk, argv[0]);
	open = assign(rk, argv[0], only, offset);
	if (open <= 0)
		die("consume: no topic %s, or no such partition", argv[0]);
	while ((follow || open > 0) && count != 0)
	{
		rd_kafka_message_t *message = rd_kafka_consumer_poll(rk, 100);

		if (now_us() > deadline)
		{
			if (follow && count < 0)
				break;
			die("consume: time is up");
		}
		if (message == NULL)
			continue;
		if (message->err == 0)
		{
			print_record(message);
			if (follow)
				fflush(stdout);
			if (count > 0)
				count--;
		}
		else if (message->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
			open--;
		else if (message->err == RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET ||
				 message->err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED)
			die("consume: %s", rd_kafka_err2name(message->err));
		rd_kafka_message_destroy(message);
	}
}

/* ---------- the service at the other end ---------- */

/*
 * The inventory has STOCK of each product, and refuses what is more than it
 * has left.  An order is known by its message id: it can come twice, and then
 * gets the answer of the first time.
 */
#define STOCK		100
#define PRODUCTS	1024
#define BUCKETS		65536

typedef struct Answer
{
	struct Answer *next;
	char		text[128];
	char		id[];
} Answer;

static Answer *answers[BUCKETS];
static int	stock[PRODUCTS];
static long orders;

static Answer **
find_answer(const char *id)
{
	unsigned int hash = 5381;
	Answer	  **at;

	for (const char *c = id; *c != '\0'; c++)
		hash = hash * 33 + (unsigned char) *c;
	for (at = &answers[hash % BUCKETS]; *at != NULL; at = &(*at)->next)
	{
		if (strcmp((*at)->id, id) == 0)
			break;
	}
	return at;
}

/* The number that a member of the order's JSON object has; it isn't nested. */
static long
member(const char *json, const char *name)
{
	char		quoted[64];
	const char *at;

	snprintf(quoted, sizeof(quoted), "\"%s\"", name);
	at = strstr(json, quoted);
	if (at == NULL)
		return 0;
	at += strlen(quoted);
	at += strspn(at, " \t\n\r:\"");
	return strtol(at, NULL, 10);
}

static void
decide(const char *json, int fail_every, bool as_json, Answer *answer)
{
	long		product = member(json, "productId");
	long		quantity = member(json, "quantity");
	int		   *left = &stock[(unsigned long) product % PRODUCTS];
	char		reason[64] = "";

	orders++;
	if (fail_every > 0 && orders % fail_every == 0)
		snprintf(reason, sizeof(reason), "refused");
	else if (quantity > *left)
		snprintf(reason, sizeof(reason), "%d left of product %ld", *left, product);
	else
		*left -= quantity;

	if (as_json && reason[0] != '\0')
		snprintf(answer->text, sizeof(answer->text),
				 "{\"status\": \"FAILED\", \"error\": \"%s\"}", reason);
	else
		snprintf(answer->text, sizeof(answer->text), "%s",
				 reason[0] != '\0' ? "FAILED" : "SUCCESS");
}

/* The message id: the key, or the header `id` where the key has a meaning. */
static char *
message_id(const rd_kafka_message_t *message, bool by_header)
{
	const void *id = message->key;
	size_t		len = message->key_len;
	rd_kafka_headers_t *headers;

	if (by_header &&
		(rd_kafka_message_headers(message, &headers) != 0 ||
		 rd_kafka_header_get_last(headers, "id", &id, &len) != 0))
		return NULL;
	return id != NULL ? strndup(id, len) : NULL;
}

static void
serve_order(rd_kafka_t *producer, const char *result_topic,
			const rd_kafka_message_t *message, int fail_every, bool by_header,
			bool as_json)
{
	char	   *id = message_id(message, by_header);
	rd_kafka_headers_t *headers = NULL;
	Answer	  **at;
	Field		key,
				value;

	if (id == NULL)
		return;
	at = find_answer(id);
	if (*at == NULL)
	{
		char	   *json = strndup(message->payload ? message->payload : "", message->len);

		*at = calloc(1, sizeof(Answer) + strlen(id) + 1);
		strcpy((*at)->id, id);
		decide(json, fail_every, as_json, *at);
		free(json);
	}

	key = (Field) {id, strlen(id)};
	value = (Field) {(*at)->text, strlen((*at)->text)};
	if (by_header)
	{
		headers = rd_kafka_headers_new(1);
		rd_kafka_header_add(headers, "reply_to_message_id", -1, id, strlen(id));
		key = (Field) {message->key, message->key_len};
	}
	produce(producer, result_topic, RD_KAFKA_PARTITION_UA, key, value, headers);
	if (headers != NULL)
		rd_kafka_headers_destroy(headers);
	printf("%s %s\n", id, value.data);
	fflush(stdout);
	free(id);
}

static void
cmd_service(int argc, char **argv)
{
	rd_kafka_t *consumer = new_consumer();
	rd_kafka_t *producer = new_producer();
	bool		by_header = false;
	bool		as_json = false;
	int			fail_every = 0;

	for (int i = 2; i < argc; i++)
	{
		if (strcmp(argv[i], "--by-header") == 0)
			by_header = true;
		else if (strcmp(argv[i], "--json") == 0)
			as_json = true;
		else if (strcmp(argv[i], "--fail-every") == 0 && i + 1 < argc)
			fail_every = number(argv[++i]);
		else
			die("service: unknown option %s", argv[i]);
	}
	for (int i = 0; i < PRODUCTS; i++)
		stock[i] = STOCK;

	announce(consumer, argv[0]);
	announce(producer, argv[1]);
	while (assign(consumer, argv[0], -1, RD_KAFKA_OFFSET_BEGINNING) <= 0)
		pause_ms(100);
	for (;;)
	{
		rd_kafka_message_t *message = rd_kafka_consumer_poll(consumer, 100);

		rd_kafka_poll(producer, 0);
		if (message == NULL)
			continue;
		if (message->err == 0)
			serve_order(producer, argv[1], message, fail_every, by_header, as_json);
		rd_kafka_message_destroy(message);
	}
}

/* ---------- the command line ---------- */

static const struct
{
	const char *name;
	int			min_args;
	void		(*run) (int argc, char **argv);
}			commands[] =

{
	{"wait-ready", 0, cmd_wait_ready},
	{"create-topic", 2, cmd_create_topic},
	{"delete-topic", 1, cmd_delete_topic},
	{"add-partitions", 2, cmd_add_partitions},
	{"alter-config", 2, cmd_alter_config},
	{"acl-add", 5, cmd_acl_add},
	{"acl-remove", 5, cmd_acl_remove},
	{"topics", 0, cmd_topics},
	{"watermarks", 2, cmd_watermarks},
	{"produce", 1, cmd_produce},
	{"consume", 1, cmd_consume},
	{"rtt", 2, cmd_rtt},
	{"service", 2, cmd_service},
};

static void
usage(void)
{
	fprintf(stderr, "usage: ktool -b BOOTSTRAP [-X PROPERTY=VALUE]... [-v] COMMAND ...\ncommands:");
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		fprintf(stderr, " %s", commands[i].name);
	fputc('\n', stderr);
	exit(2);
}

int
main(int argc, char **argv)
{
	int			opt;

	/* "+": the command's own options are none of ours */
	while ((opt = getopt(argc, argv, "+b:X:v")) != -1)
	{
		if (opt == 'b')
			bootstrap = optarg;
		else if (opt == 'X' && nproperties < MAX_PROPERTIES)
			properties[nproperties++] = optarg;
		else if (opt == 'v')
			verbose = true;
		else
			usage();
	}
	argc -= optind;
	argv += optind;
	if (bootstrap == NULL || argc < 1)
		usage();

	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
	{
		if (strcmp(commands[i].name, argv[0]) != 0)
			continue;
		if (argc - 1 < commands[i].min_args)
			usage();
		commands[i].run(argc - 1, argv + 1);

		/*
		 * Without rd_kafka_destroy(): it would wait for a broker that hangs,
		 * and there is nothing left to do.
		 */
		fflush(stdout);
		_exit(ferror(stdout) ? 1 : 0);
	}
	usage();
}
