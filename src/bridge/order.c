/*-------------------------------------------------------------------------
 *
 * order.c
 *	  Keeps a partition from going on behind a request that failed.
 *
 * Where the broker turns a request down for good, librdkafka goes on with what
 * is queued behind it, at once, in the thread that read the answer.  Whatever
 * failed and is sent again then comes too late.  So an interceptor, which that
 * thread calls as it reads the answer, pauses the partition and purges what is
 * queued.  The thread does the latter next, before it sends anything more, also
 * of a request that is made up already; what the main thread adds from then on
 * stays in the partition until it takes it back, too.  It resumes the partition
 * for the next batch, when nothing is outstanding any more.
 *
 * A purge is one of all partitions, and what the main thread adds to another one
 * after that would overtake what was purged there.  So it hands over nothing more
 * of the batch as soon as a purge is about to come.
 *
 *-------------------------------------------------------------------------
 */
#include <pthread.h>
#include <stdatomic.h>

#include "client.h"

static _Thread_local bool is_broker_thread;

/* A pause holds until this changes */
static atomic_uint resumptions;

static rd_kafka_topic_partition_list_t *paused; /* main thread only */

/* A purge has begun in this batch; no record is handed over while it changes */
static bool purging;
static pthread_mutex_t purging_lock = PTHREAD_MUTEX_INITIALIZER;

static void set_purging(bool value);
static rd_kafka_resp_err_t on_new(rd_kafka_t *rk, const rd_kafka_conf_t *conf, void *opaque,
								  char *text, size_t size);
static rd_kafka_resp_err_t on_thread_start(rd_kafka_t *rk, rd_kafka_thread_type_t type,
										   const char *name, void *opaque);
static rd_kafka_resp_err_t on_acknowledgement(rd_kafka_t *rk, rd_kafka_message_t *message,
											  void *opaque);

static void
set_purging(bool value)
{
	pthread_mutex_lock(&purging_lock);
	purging = value;
	pthread_mutex_unlock(&purging_lock);
}

/*
 * May a record be handed over?  If so it has to be done, and order_handed_over
 * called, at once.
 */
bool
order_may_hand_over(void)
{
	pthread_mutex_lock(&purging_lock);
	if (!purging)
		return true;
	pthread_mutex_unlock(&purging_lock);
	return false;
}

void
order_handed_over(void)
{
	pthread_mutex_unlock(&purging_lock);
}

/* To be called before the client is made */
void
order_install(rd_kafka_conf_t *conf)
{
	rd_kafka_conf_interceptor_add_on_new(conf, "order", on_new, NULL);
	paused = rd_kafka_topic_partition_list_new(1);
}

static rd_kafka_resp_err_t
on_new(rd_kafka_t *rk, const rd_kafka_conf_t *conf, void *opaque, char *text, size_t size)
{
	(void) conf;
	(void) opaque;
	(void) text;
	(void) size;
	rd_kafka_interceptor_add_on_thread_start(rk, "order", on_thread_start, NULL);
	return rd_kafka_interceptor_add_on_acknowledgement(rk, "order", on_acknowledgement, NULL);
}

static rd_kafka_resp_err_t
on_thread_start(rd_kafka_t *rk, rd_kafka_thread_type_t type, const char *name, void *opaque)
{
	(void) rk;
	(void) name;
	(void) opaque;
	is_broker_thread = type == RD_KAFKA_THREAD_BROKER;
	return RD_KAFKA_RESP_ERR_NO_ERROR;
}

/*
 * A record is about to be reported.  In a broker's thread, an error other than
 * a purge is that of a request, and no lock is held: it may wait here for
 * librdkafka's main thread, which does the pausing.  Once is enough for all
 * records of the request.
 */
static rd_kafka_resp_err_t
on_acknowledgement(rd_kafka_t *rk, rd_kafka_message_t *message, void *opaque)
{
	static _Thread_local const rd_kafka_topic_t *last_topic;
	static _Thread_local int32_t last_partition;
	static _Thread_local unsigned int last_resumptions;
	rd_kafka_topic_partition_list_t *list;

	(void) opaque;
	if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR ||
		message->err == RD_KAFKA_RESP_ERR__PURGE_QUEUE ||
		message->err == RD_KAFKA_RESP_ERR__PURGE_INFLIGHT || !is_broker_thread)
		return RD_KAFKA_RESP_ERR_NO_ERROR;
	if (last_topic == message->rkt && last_partition == message->partition &&
		last_resumptions == atomic_load(&resumptions))
		return RD_KAFKA_RESP_ERR_NO_ERROR;

	last_topic = message->rkt;
	last_partition = message->partition;
	last_resumptions = atomic_load(&resumptions);
	set_purging(true);
	list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_list_add(list, rd_kafka_topic_name(message->rkt), message->partition);
	rd_kafka_pause_partitions(rk, list);
	rd_kafka_topic_partition_list_destroy(list);
	rd_kafka_purge(rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_NON_BLOCKING);
	return RD_KAFKA_RESP_ERR_NO_ERROR;
}

/* A record of that partition was reported with an error */
void
order_failed(const Topic *topic, int32_t partition)
{
	if (rd_kafka_topic_partition_list_find(paused, topic->name, partition) == NULL)
		rd_kafka_topic_partition_list_add(paused, topic->name, partition);
}

/* A new batch begins, and nothing of the one before is outstanding */
void
order_resume(void)
{
	set_purging(false);
	if (paused->cnt == 0)
		return;
	atomic_fetch_add(&resumptions, 1);
	rd_kafka_resume_partitions(client.rk, paused);
	rd_kafka_topic_partition_list_destroy(paused);
	paused = rd_kafka_topic_partition_list_new(1);
}
