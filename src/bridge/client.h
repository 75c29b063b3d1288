/*-------------------------------------------------------------------------
 *
 * client.h
 *	  The parts of the bridge and what they offer each other.
 *
 * One thread, the main one, runs all of it, but for the blocking questions
 * in helper.c.  The bridge decides nothing: it reports.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_CLIENT_H
#define OUTBOX_CLIENT_H

#include <librdkafka/rdkafka.h>

#include "frame.h"
#include "protocol.h"

/* How long a question to the brokers may take before they count as down */
#define ANSWER_TIMEOUT_MS	2000
/* How many brokers are tried when the one asked keeps silent */
#define LEADERS_TRIED		2

typedef struct Topic Topic;

typedef struct Client
{
	BridgeRole	role;
	rd_kafka_t *rk;
	rd_kafka_queue_t *main_queue;
	int			wakeup;			/* eventfd: librdkafka or a helper has news */
	FrameOut	out;
	bool		finished;		/* rd_kafka_fatal_error: no use going on */
	bool		brokers_up;		/* one answered, the last time */
	bool		brokers_down;	/* none did, or so it was reported */
	int64_t		trouble_at;		/* last error of a connection */
} Client;

extern Client client;

/*---- main.c ----*/
extern int64_t now_ms(void);
extern void fatal(const char *format,...)
			__attribute__((noreturn, format(printf, 1, 2)));
extern void *xalloc(size_t size);
extern char *xstrdup(const char *value);

/*---- client.c ----*/
extern void client_start(FrameReader *hello);
extern bool client_serve(void);
extern int	client_tick(int64_t now);
extern void client_metadata_answered(rd_kafka_resp_err_t err);
extern void client_probe(void);
extern void client_log(int level, const char *format,...)
			__attribute__((format(printf, 2, 3)));

/*---- version.c ----*/
extern void version_faults(int version, char *text, size_t size);

/*---- record.c: records on their way out ----*/

typedef struct Record
{
	uint32_t	index;
	const char *topic;
	const void *key;
	int32_t		key_len;
	const void *value;
	int32_t		value_len;
	uint32_t	nheaders;
	FrameReader headers;		/* stands at the first one */
} Record;

/* A record that waits for metadata or for room in the producer's queue */
typedef struct Waiting
{
	struct Waiting *next;
	size_t		len;
	unsigned char item[];		/* as it came in a PRODUCE frame */
} Waiting;

typedef struct WaitingList
{
	Waiting    *first;
	Waiting   **last;			/* NULL while the list is empty */
} WaitingList;

extern void record_read(FrameReader *frame, Record *record);
extern rd_kafka_headers_t *record_headers(const Record *record);
extern void waiting_add(WaitingList *list, const unsigned char *item, size_t len);
extern Waiting *waiting_take(WaitingList *list);
extern void waiting_move(WaitingList *list, WaitingList *to);
extern void waiting_move_first(WaitingList *list, WaitingList *to);
extern size_t waiting_bytes(void);

/*---- outcome.c ----*/
extern void outcome_unsent(uint32_t index, OutcomeClass class, const Topic *topic,
						   int32_t partition, rd_kafka_resp_err_t err);
extern void outcome_report(const rd_kafka_message_t *message, OutcomeClass class);

/*---- order.c: no record overtakes one that failed ----*/
extern void order_install(rd_kafka_conf_t *conf);
extern void order_failed(const Topic *topic, int32_t partition);
extern bool order_may_hand_over(void);
extern void order_handed_over(void);
extern void order_resume(void);

/*---- topic.c: what is known of the topics ----*/

typedef struct Partition
{
	int32_t		leader;			/* -1: there is none */
	uint32_t	outstanding;	/* records with librdkafka */
	uint32_t	failed_batch;	/* a record failed in that batch */
	rd_kafka_resp_err_t failed_err;
} Partition;

struct Topic
{
	Topic	   *chain;			/* next in the hash bucket */
	Topic	   *all;			/* next in the list of all */
	rd_kafka_topic_t *rkt;		/* NULL if librdkafka refuses the name */
	bool		asking;			/* metadata is on its way */
	bool		asked;			/* the worker wants to hear the answer */
	bool		verified;		/* the answer is still believed */
	rd_kafka_resp_err_t err;	/* of the last answer */
	int32_t		npartitions;	/* -1 if unknown */
	int32_t		allocated;		/* partitions there is room for */
	Partition  *partitions;
	int32_t		leaderless;
	int32_t		replication_factor;
	int32_t		min_insync_replicas;
	bool		changed;		/* against what was last reported */
	int64_t		answered_at;
	uint32_t	failed_batch;	/* producer: a record failed in that batch */
	rd_kafka_resp_err_t failed_err;
	uint32_t	outstanding;	/* producer: records with librdkafka */
	uint32_t	readings;		/* consumer: partitions being read */
	WaitingList waiting;		/* producer: records before metadata */
	char		name[];
};

typedef struct MetadataAnswer
{
	rd_kafka_resp_err_t err;	/* of the request */
	bool		others_answer;	/* it failed, but another broker is there */
	rd_kafka_resp_err_t topic_err;
	int32_t		npartitions;
	int32_t		replication_factor;
	int32_t    *leaders;		/* malloc'd */
} MetadataAnswer;

typedef struct LedPartition
{
	const char *topic;
	int32_t		partition;
	int32_t		leader;
} LedPartition;

extern Topic *topic_get(const char *name);
extern Topic *topic_first(void);
extern int32_t topic_leader(const Topic *topic, int32_t partition);
extern void topic_ask(Topic *topic);
extern void topic_ask_for_worker(const char *name);
extern void topic_answered(Topic *topic, MetadataAnswer *answer);
extern void topic_report(Topic *topic);
extern void topic_report_error(const Topic *topic, rd_kafka_resp_err_t err);
extern void topics_distrust(void);
extern int	topics_leaders(LedPartition *found, int max);

/*---- helper.c: questions that block ----*/
extern void helper_start(void);
extern void helper_ask_metadata(Topic *topic);
extern void helper_ask_anything(void);
extern void helper_watch(uint32_t tag, const char *topic, int32_t partition,
						 int64_t time);
extern void helper_serve(void);

/*---- admin.c ----*/
extern bool admin_describe(Topic *topic);
extern void admin_create_topic(FrameReader *frame);
extern void admin_event(rd_kafka_event_t *event);

/*---- produce.c ----*/
extern void produce_frame(FrameReader *frame);
extern void produce_oversize(uint32_t index);
extern void produce_reports(rd_kafka_event_t *event);
extern void produce_retry(void);
extern void produce_topic_answered(Topic *topic, rd_kafka_resp_err_t err);
extern void produce_end_batch(void);
extern void produce_give_up_waiting(rd_kafka_resp_err_t err);
extern void produce_purge(void);
extern bool produce_blocked(void);
extern int	produce_tick(int64_t now);

/*---- consume.c ----*/
extern void consume_start(uint32_t tag, const char *topic, int32_t partition,
						  int64_t offset, bool first_only);
extern void consume_stop(uint32_t tag);
extern bool consume_serve(void);
extern void consume_trouble(rd_kafka_t *rk, int err, const char *reason, void *opaque);
extern void consume_topic_answered(const Topic *topic);
extern int	consume_tick(int64_t now);
extern void consume_error(uint32_t tag, rd_kafka_resp_err_t err,
						  int64_t offset, const char *text);

/*---- classify.c ----*/
extern OutcomeClass classify_outcome(rd_kafka_resp_err_t err);
extern OutcomeClass classify_refusal(rd_kafka_resp_err_t err);
extern OutcomeClass classify_topic(rd_kafka_resp_err_t err);
extern PartitionErrorClass classify_partition(rd_kafka_resp_err_t err);
extern const char *error_name(rd_kafka_resp_err_t err);

#endif							/* OUTBOX_CLIENT_H */
