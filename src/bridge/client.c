/*-------------------------------------------------------------------------
 *
 * client.c
 *	  The bridge's librdkafka client: its properties, its log, and whether the
 *	  brokers are there.
 *
 *-------------------------------------------------------------------------
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <syslog.h>

#include "client.h"

/* librdkafka's events served before the socket is looked at again */
#define EVENTS_A_TURN		200
#define LOG_LINES_A_SECOND	20
/* Pause between questions while the brokers are down */
#define PROBE_INTERVAL_MS	300

typedef struct Property
{
	const char *name;
	const char *value;
} Property;

/* Ours, but the settings may say otherwise */
static const Property common_defaults[] = {
	{"client.id", "outbox"},
	{"reconnect.backoff.ms", "50"},
	{"reconnect.backoff.max.ms", "1000"},
	{"socket.nagle.disable", "true"},
	{NULL, NULL}
};

/* A consumer's default already: saying so would only bring a log line */
static const Property producer_defaults[] = {
	{"allow.auto.create.topics", "false"},
	{"queue.buffering.max.kbytes", "65536"},
	{"queue.buffering.max.messages", "10000000"},
	{NULL, NULL}
};

/* A broker that hangs holds a question for so long; the queue is a partition's */
static const Property consumer_defaults[] = {
	{"socket.timeout.ms", "10000"},
	{"queued.max.messages.kbytes", "1024"},
	{NULL, NULL}
};

/* Never otherwise: the order and the promises rest on these */
static const Property producer_forced[] = {
	{"enable.idempotence", "true"},
	{"acks", "all"},
	{"message.timeout.ms", "0"},
	{"max.in.flight.requests.per.connection", "1"},
	{"batch.size", "100000"},
	{"partitioner", "murmur2_random"},
	{"linger.ms", "0"},
	{"message.max.bytes", "67108864"},
	{"topic.metadata.propagation.max.ms", "1000"},
	{NULL, NULL}
};

static const Property consumer_forced[] = {
	{"isolation.level", "read_committed"},
	{"auto.offset.reset", "error"},
	{"enable.partition.eof", "true"},
	{"enable.auto.commit", "false"},
	{"enable.auto.offset.store", "false"},
	{"check.crcs", "true"},
	{"topic.metadata.propagation.max.ms", "1000"},
	{NULL, NULL}
};

static char last_error[512];	/* what a broker's connection died of */
static int64_t probe_at;		/* 0: no probe is due */
static int64_t log_window;
static int	log_lines;
static int	log_dropped;

static void set_properties(rd_kafka_conf_t *conf, const Property *property);
static void set_settings(rd_kafka_conf_t *conf, FrameReader *hello);
static void report_down(const char *reason);
static void serve_error(rd_kafka_event_t *event);
static void serve_fatal(void);
static void serve_log(rd_kafka_event_t *event);
static void serve_event(rd_kafka_event_t *event);
static void send_log(int level, const char *text);
static void flush_log(int64_t now);

static void
set_properties(rd_kafka_conf_t *conf, const Property *property)
{
	char		text[512];

	for (; property->name != NULL; property++)
	{
		if (rd_kafka_conf_set(conf, property->name, property->value,
							  text, sizeof(text)) != RD_KAFKA_CONF_OK)
			fatal("librdkafka %s refuses %s: %s", rd_kafka_version_str(),
				  property->name, text);
	}
}

/*
 * Applies what the worker's settings say.  librdkafka's own text isn't
 * repeated: it may quote the value, and the value may be a secret.
 */
static void
set_settings(rd_kafka_conf_t *conf, FrameReader *hello)
{
	while (frame_more(hello))
	{
		const char *name = get_string(hello);
		const char *value = get_string(hello);
		char		text[512];

		if (hello->bad)
			fatal("received a malformed HELLO");
		switch (rd_kafka_conf_set(conf, name, value, text, sizeof(text)))
		{
			case RD_KAFKA_CONF_OK:
				break;
			case RD_KAFKA_CONF_UNKNOWN:
				fatal("librdkafka %s doesn't know the property \"%s\"",
					  rd_kafka_version_str(), name);
			case RD_KAFKA_CONF_INVALID:
				fatal("librdkafka %s refuses the value of the property \"%s\"",
					  rd_kafka_version_str(), name);
		}
		/* Tokens are fetched over HTTP: not by the main thread */
		if (strcmp(name, "sasl.oauthbearer.method") == 0)
			rd_kafka_conf_enable_sasl_queue(conf, 1);
		explicit_bzero(text, sizeof(text));
	}
}

/* Answers HELLO: makes the client, or ends the bridge saying why not */
void
client_start(FrameReader *hello)
{
	uint32_t	protocol = get_u32(hello);
	const char *build = get_string(hello);
	rd_kafka_conf_t *conf;
	char		text[512];

	if (protocol != BRIDGE_PROTOCOL || strcmp(build, OUTBOX_BUILD) != 0)
		fatal("the bridge is of build %s, protocol %d, but its worker is of build %.100s, protocol %u",
			  OUTBOX_BUILD, BRIDGE_PROTOCOL, build, protocol);
	client.role = get_u8(hello);
	if (hello->bad || (client.role != BRIDGE_PRODUCER && client.role != BRIDGE_CONSUMER))
		fatal("received a malformed HELLO");

	conf = rd_kafka_conf_new();
	set_properties(conf, common_defaults);
	set_properties(conf, client.role == BRIDGE_PRODUCER ? producer_defaults : consumer_defaults);
	set_settings(conf, hello);
	set_properties(conf, client.role == BRIDGE_PRODUCER ? producer_forced : consumer_forced);
	rd_kafka_conf_set(conf, "log.queue", "true", NULL, 0);
	/* Not known to every version, and the cause of crashes in some */
	rd_kafka_conf_set(conf, "enable.metrics.push", "false", NULL, 0);
	if (client.role == BRIDGE_PRODUCER)
		order_install(conf);
	rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_DR | RD_KAFKA_EVENT_ERROR | RD_KAFKA_EVENT_LOG);

	if (client.role == BRIDGE_CONSUMER)
		rd_kafka_conf_set_error_cb(conf, consume_trouble);

	client.rk = rd_kafka_new(client.role == BRIDGE_PRODUCER ? RD_KAFKA_PRODUCER : RD_KAFKA_CONSUMER,
							 conf, text, sizeof(text));
	if (client.rk == NULL)
		fatal("could not create a Kafka client: %s", text);
	rd_kafka_set_log_queue(client.rk, NULL);
	client.main_queue = rd_kafka_queue_get_main(client.rk);
	rd_kafka_queue_io_event_enable(client.main_queue, client.wakeup, &(uint64_t) {1}, sizeof(uint64_t));
	/* An error only where no token is to be fetched */
	rd_kafka_error_destroy(rd_kafka_sasl_background_callbacks_enable(client.rk));

	version_faults(rd_kafka_version(), text, sizeof(text));
	frame_begin(&client.out, FRAME_WELCOME);
	put_u32(&client.out, BRIDGE_PROTOCOL);
	put_string(&client.out, OUTBOX_BUILD);
	put_string(&client.out, rd_kafka_version_str());
	put_string(&client.out, text);
	frame_end(&client.out);

	helper_start();
	client_probe();
}

/* Serves what librdkafka and the helpers have; true if there is more */
bool
client_serve(void)
{
	bool		more = false;

	for (int i = 0;; i++)
	{
		rd_kafka_event_t *event;

		if (i == EVENTS_A_TURN)
		{
			more = true;
			break;
		}
		event = rd_kafka_queue_poll(client.main_queue, 0);
		if (event == NULL)
			break;
		serve_event(event);
		/* The records of a report take room until then */
		rd_kafka_event_destroy(event);
		produce_retry();
	}
	helper_serve();
	if (client.role == BRIDGE_CONSUMER && consume_serve())
		more = true;
	return more;
}

/* What is due by the clock; returns how long there is to sleep, -1 for ever */
int
client_tick(int64_t now)
{
	int			due = client.role == BRIDGE_PRODUCER ? produce_tick(now) : consume_tick(now);

	if (probe_at > 0 && now >= probe_at)
	{
		probe_at = 0;
		client_probe();
	}
	if (probe_at > 0 && (due < 0 || due > probe_at - now))
		due = (int) (probe_at - now);

	flush_log(now);
	if (log_dropped > 0 && (due < 0 || due > 1000))
		due = 1000;
	return due;
}

static void
serve_event(rd_kafka_event_t *event)
{
	switch (rd_kafka_event_type(event))
	{
		case RD_KAFKA_EVENT_DR:
			produce_reports(event);
			break;
		case RD_KAFKA_EVENT_ERROR:
			serve_error(event);
			break;
		case RD_KAFKA_EVENT_LOG:
			serve_log(event);
			break;
		default:
			admin_event(event);
			break;
	}
}

/*---- the brokers ----*/

/* Asks whether the brokers are there: client_metadata_answered */
void
client_probe(void)
{
	Topic	   *topic = topic_first();

	while (topic != NULL && topic->rkt == NULL)
		topic = topic->all;
	if (topic != NULL)
		topic_ask(topic);
	else
		helper_ask_anything();
}

/* Brokers answered a question, or they didn't */
void
client_metadata_answered(rd_kafka_resp_err_t err)
{
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		report_down(last_error[0] ? last_error : "no broker answered within 2 seconds");
		return;
	}
	probe_at = 0;
	last_error[0] = '\0';
	client.brokers_down = false;
	if (client.brokers_up)
		return;
	client.brokers_up = true;
	frame_begin(&client.out, FRAME_BROKERS);
	put_u8(&client.out, 1);
	put_string(&client.out, "");
	frame_end(&client.out);
}

/* Says that the brokers are down, unless it was said, and keeps asking */
static void
report_down(const char *reason)
{
	topics_distrust();
	probe_at = now_ms() + PROBE_INTERVAL_MS;
	if (client.brokers_down)
		return;
	client.brokers_down = true;
	client.brokers_up = false;
	frame_begin(&client.out, FRAME_BROKERS);
	put_u8(&client.out, 0);
	put_string(&client.out, reason);
	frame_end(&client.out);
	if (client.role == BRIDGE_PRODUCER)
		produce_give_up_waiting(RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN);
}

/*
 * Something is wrong with a broker or with all of them.  One broker of many
 * proves nothing, so that only a question tells; but until the first answer
 * came, bad credentials and the like are said at once.
 *
 * librdkafka also says that all brokers are down when the last idle
 * connection was closed; then no other error came before.
 */
static void
serve_error(rd_kafka_event_t *event)
{
	rd_kafka_resp_err_t err = rd_kafka_event_error(event);
	const char *text = rd_kafka_event_error_string(event);

	if (err == RD_KAFKA_RESP_ERR__FATAL)
	{
		serve_fatal();
		return;
	}
	topics_distrust();
	client.trouble_at = now_ms();
	if (err != RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN)
		snprintf(last_error, sizeof(last_error), "%s", text);
	if (err == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN ? last_error[0] != '\0' :
		(!client.brokers_up && (err == RD_KAFKA_RESP_ERR__AUTHENTICATION ||
								err == RD_KAFKA_RESP_ERR__SSL ||
								err == RD_KAFKA_RESP_ERR__RESOLVE)))
		report_down(last_error);
	else if (client.brokers_up)
		client_probe();
}

/* The client is of no use any more: say so for every record it still has */
static void
serve_fatal(void)
{
	char		text[512];
	rd_kafka_resp_err_t err = rd_kafka_fatal_error(client.rk, text, sizeof(text));

	if (client.role == BRIDGE_CONSUMER)
		fatal("the client is of no use any more: %s", text);
	client.finished = true;
	if (err == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED)
		report_down(text);
	produce_purge();
}

/*---- the log ----*/

static void
send_log(int level, const char *text)
{
	frame_begin(&client.out, FRAME_LOG);
	put_u8(&client.out, (uint8_t) level);
	put_string(&client.out, text);
	frame_end(&client.out);
}

/* A new second: says how many lines the last one had too many */
static void
flush_log(int64_t now)
{
	char		text[64];

	if (now - log_window < 1000)
		return;
	log_window = now;
	log_lines = 0;
	if (log_dropped == 0)
		return;
	snprintf(text, sizeof(text), "%d further lines were left out", log_dropped);
	log_dropped = 0;
	send_log(LOG_NOTICE, text);
}

void
client_log(int level, const char *format,...)
{
	char		text[1024];
	va_list		args;

	flush_log(now_ms());
	if (++log_lines > LOG_LINES_A_SECOND)
	{
		log_dropped++;
		return;
	}
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	send_log(level, text);
}

static void
serve_log(rd_kafka_event_t *event)
{
	const char *facility;
	const char *text;
	int			level;

	if (rd_kafka_event_log(event, &facility, &text, &level) == 0)
		client_log(level, "%s: %s", facility, text);
}
