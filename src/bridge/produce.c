/*-------------------------------------------------------------------------
 *
 * produce.c
 *	  Records on their way to Kafka, and what became of them.
 *
 * Records of a topic go to librdkafka in the order they came.  One that can't
 * go yet waits: in its topic's list while the topic's metadata aren't known,
 * else in a common list while librdkafka's queue is full.  Then whatever comes
 * later waits behind it.  What a topic's list holds came before anything of
 * that topic in the common one: only the head of that goes to the former.
 *
 * What can't be sent as things are (no such topic, no leader) is answered at
 * once and never handed over, so that a batch doesn't wait for it.  What was
 * handed over may have been sent, and is left alone until the worker purges.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>

#include "client.h"

/* Waiting records above this, and the socket isn't read */
#define WAITING_MAX			((size_t) 64 * 1024 * 1024)
/* No report for so long, with records outstanding: ask about their topics */
#define STALLED_MS			200
#define STALLED_AGAIN_MS	1000
/* An answer that a topic can't be written is believed for so long */
#define BAD_NEWS_MS			500
/* A topic in use is asked about again, for new partitions */
#define REFRESH_MS			60000
#define PURGE_AGAIN_MS		200

static WaitingList no_room;
static uint32_t outstanding;	/* records with librdkafka */
static int64_t handed_at;		/* when the first of these was handed over */
static int64_t progress_at;		/* last sign that it gets on with them */
static int64_t purge_at;		/* 0: not purging */
static int	purge_flags;

/*
 * Which batch is being produced.  Where a record failed, nothing that comes
 * later in the same batch is sent: it would overtake.
 */
static uint32_t batch = 1;
static bool batch_ended;
static bool giving_up;			/* a purge isn't because of such a record */

static void retry_waiting(WaitingList *list);
static void produce_item(const unsigned char *item, size_t len, const Record *record,
						 int64_t now);
static void produce_to(Topic *topic, int32_t partition, const unsigned char *item,
					   size_t len, const Record *record);
static bool trusted(const Topic *topic, const Record *record, int64_t now);
static int32_t choose_partition(const Topic *topic, const Record *record);
static rd_kafka_resp_err_t hand_over(Topic *topic, const Record *record, int32_t partition);
static void note_failure(Topic *topic, int32_t partition, rd_kafka_resp_err_t err);
static void refuse(uint32_t index, Topic *topic, int32_t partition, rd_kafka_resp_err_t err);
static void refuse_behind(uint32_t index, const Topic *topic, int32_t partition);
static void give_up_waiting(WaitingList *list, rd_kafka_resp_err_t err);
static bool all_leaderless(void);
static OutcomeClass class_of(rd_kafka_resp_err_t err);
static void give_up(int flags);
static void purge(int flags);

/*---- in ----*/

/* PRODUCE */
void
produce_frame(FrameReader *frame)
{
	int64_t		now = now_ms();

	if (batch_ended && outstanding == 0 && waiting_bytes() == 0)
	{
		batch++;
		batch_ended = false;
		order_resume();
	}
	while (frame_more(frame))
	{
		const unsigned char *item = frame->next;
		size_t		len;
		Record		record;

		record_read(frame, &record);
		len = (size_t) (frame->next - item);
		if (no_room.first != NULL)
			waiting_add(&no_room, item, len);
		else
			produce_item(item, len, &record, now);
	}
}

/* OVERSIZE */
void
produce_oversize(uint32_t index)
{
	outcome_unsent(index, OUTCOME_REJECTED, NULL, -1, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE);
}

/* FLUSH: what comes after the outcomes of all so far is another batch */
void
produce_end_batch(void)
{
	batch_ended = true;
}

/* Is so much waiting that the worker has to stop? */
bool
produce_blocked(void)
{
	return waiting_bytes() > WAITING_MAX;
}

/*
 * Tries the records of a list again, in order.  One that finds no room goes
 * to the list of those, and all of the rest behind it.
 */
static void
retry_waiting(WaitingList *list)
{
	WaitingList again = {NULL, NULL};
	Waiting    *waiting;
	int64_t		now = now_ms();

	if (list != &no_room && no_room.first != NULL)
	{
		waiting_move_first(list, &no_room);
		return;
	}
	waiting_move(list, &again);
	while (no_room.first == NULL && (waiting = waiting_take(&again)) != NULL)
	{
		FrameReader frame = {waiting->item, waiting->item + waiting->len, FRAME_PRODUCE, false};
		Record		record;

		record_read(&frame, &record);
		produce_item(waiting->item, waiting->len, &record, now);
		free(waiting);
	}
	waiting_move(&again, &no_room);
}

/* Produces a record, answers it, or lets it wait */
static void
produce_item(const unsigned char *item, size_t len, const Record *record, int64_t now)
{
	Topic	   *topic = topic_get(record->topic);

	if (client.finished)
		refuse(record->index, topic, -1, RD_KAFKA_RESP_ERR__FATAL);
	else if (client.brokers_down)
		refuse(record->index, topic, -1, RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN);
	else if (topic->rkt != NULL && (topic->waiting.first != NULL || !trusted(topic, record, now)))
	{
		waiting_add(&topic->waiting, item, len);
		topic_ask(topic);
	}
	else if (topic->err != RD_KAFKA_RESP_ERR_NO_ERROR)
		refuse(record->index, topic, -1, topic->err);
	else if (topic->failed_batch == batch)
		refuse(record->index, topic, -1, topic->failed_err);
	else
	{
		if (now - topic->answered_at > REFRESH_MS)
			topic_ask(topic);
		produce_to(topic, choose_partition(topic, record), item, len, record);
	}
}

static void
produce_to(Topic *topic, int32_t partition, const unsigned char *item, size_t len,
		   const Record *record)
{
	rd_kafka_resp_err_t err;

	if (topic->partitions[partition].failed_batch == batch)
	{
		refuse_behind(record->index, topic, partition);
		return;
	}
	if (topic->partitions[partition].leader < 0)
	{
		refuse(record->index, topic, partition, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE);
		return;
	}
	err = hand_over(topic, record, partition);
	switch (err)
	{
		case RD_KAFKA_RESP_ERR_NO_ERROR:
			break;
		case RD_KAFKA_RESP_ERR__PURGE_QUEUE:
			outcome_unsent(record->index, OUTCOME_BEHIND, topic, partition, err);
			break;
		case RD_KAFKA_RESP_ERR__QUEUE_FULL:
			waiting_add(&no_room, item, len);
			break;
		case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
			outcome_unsent(record->index, classify_refusal(err), topic, partition, err);
			break;
		default:
			/* librdkafka knows better than we: ask before the next one */
			topic->verified = false;
			refuse(record->index, topic, partition, err);
			break;
	}
}

/*
 * May the record go by what is known of the topic?  Bad news of one partition
 * don't concern the records for others.
 */
static bool
trusted(const Topic *topic, const Record *record, int64_t now)
{
	if (!topic->verified)
		return false;
	if (topic->err == RD_KAFKA_RESP_ERR_NO_ERROR &&
		(topic->leaderless == 0 ||
		 topic->partitions[choose_partition(topic, record)].leader >= 0))
		return true;
	return now - topic->answered_at < BAD_NEWS_MS;
}

/* As Java's producer does; a record without a key goes where there's a leader */
static int32_t
choose_partition(const Topic *topic, const Record *record)
{
	static uint32_t turn = 0;

	if (record->key != NULL)
		return rd_kafka_msg_partitioner_murmur2(topic->rkt, record->key,
												(size_t) record->key_len,
												topic->npartitions, NULL, NULL);
	for (int32_t i = 0; i < topic->npartitions; i++)
	{
		int32_t		partition = (int32_t) (turn++ % (uint32_t) topic->npartitions);

		if (topic->partitions[partition].leader >= 0)
			return partition;
	}
	return 0;
}

static rd_kafka_resp_err_t
hand_over(Topic *topic, const Record *record, int32_t partition)
{
	rd_kafka_headers_t *headers = record_headers(record);
	rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR__PURGE_QUEUE;

	if (order_may_hand_over())
	{
		err = rd_kafka_producev(client.rk,
								RD_KAFKA_V_RKT(topic->rkt),
								RD_KAFKA_V_PARTITION(partition),
								RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY),
								RD_KAFKA_V_KEY(record->key, record->key ? (size_t) record->key_len : 0),
								RD_KAFKA_V_VALUE((void *) record->value,
												 record->value ? (size_t) record->value_len : 0),
								RD_KAFKA_V_HEADERS(headers),
								RD_KAFKA_V_OPAQUE((void *) (uintptr_t) record->index),
								RD_KAFKA_V_END);
		order_handed_over();
	}
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		if (headers != NULL)
			rd_kafka_headers_destroy(headers);
		return err;
	}
	if (outstanding++ == 0)
		handed_at = progress_at = now_ms();
	topic->outstanding++;
	topic->partitions[partition].outstanding++;
	return err;
}

/*---- out ----*/

/* Remembers, until the batch is over, that nothing may follow this record */
static void
note_failure(Topic *topic, int32_t partition, rd_kafka_resp_err_t err)
{
	if (partition >= 0 && partition < topic->npartitions)
	{
		topic->partitions[partition].failed_batch = batch;
		topic->partitions[partition].failed_err = err;
	}
	else
	{
		topic->failed_batch = batch;
		topic->failed_err = err;
	}
}

/* The outcome of a record that can't go out as things are */
static void
refuse(uint32_t index, Topic *topic, int32_t partition, rd_kafka_resp_err_t err)
{
	note_failure(topic, partition, err);
	outcome_unsent(index, classify_refusal(err), topic, partition, err);
}

/* The outcome of a record that may not overtake one that failed */
static void
refuse_behind(uint32_t index, const Topic *topic, int32_t partition)
{
	rd_kafka_resp_err_t err = topic->partitions[partition].failed_err;
	OutcomeClass class = class_of(err);

	if (class == OUTCOME_REQUEST_REJECTED || class == OUTCOME_CORRUPT)
		outcome_unsent(index, OUTCOME_BEHIND, topic, partition, RD_KAFKA_RESP_ERR__PURGE_QUEUE);
	else
		outcome_unsent(index, class, topic, partition, err);
}

static OutcomeClass
class_of(rd_kafka_resp_err_t err)
{
	if (err == RD_KAFKA_RESP_ERR__PURGE_QUEUE && !giving_up)
		return OUTCOME_BEHIND;
	return classify_outcome(err);
}

/* Delivery reports: all of one event are of one partition */
void
produce_reports(rd_kafka_event_t *event)
{
	const rd_kafka_message_t *message;
	bool		queue_behind = false;

	while ((message = rd_kafka_event_message_next(event)) != NULL)
	{
		Topic	   *topic = rd_kafka_topic_opaque(message->rkt);
		OutcomeClass class = class_of(message->err);
		Partition  *partition = NULL;

		if (message->partition >= 0 && message->partition < topic->allocated)
			partition = &topic->partitions[message->partition];
		outstanding--;
		topic->outstanding--;
		if (partition != NULL)
			partition->outstanding--;
		if (class != OUTCOME_OK && class != OUTCOME_BEHIND)
		{
			topic->verified = false;
			order_failed(topic, message->partition);
			queue_behind = partition != NULL && partition->outstanding > 0;
		}
		if (class != OUTCOME_OK)
			note_failure(topic, message->partition, message->err);
		outcome_report(message, class);
	}
	progress_at = now_ms();
	if (queue_behind && purge_at == 0)
		purge(RD_KAFKA_PURGE_F_QUEUE);
	if (outstanding == 0)
	{
		purge_at = 0;
		giving_up = false;
	}
}

/* There may be room again: once reports were served, and their event is gone */
void
produce_retry(void)
{
	retry_waiting(&no_room);
}

/*
 * Metadata have come, or no answer: the topic's records needn't wait more.
 *
 * If all that librdkafka still has is for partitions without a leader, and no
 * connection broke since it got the first of it, then nothing of it can have
 * been sent without an answer: it goes back.
 */
void
produce_topic_answered(Topic *topic, rd_kafka_resp_err_t err)
{
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		give_up_waiting(&topic->waiting, err);
		return;
	}
	retry_waiting(&topic->waiting);
	if (topic->leaderless > 0 && outstanding > 0 && client.trouble_at < handed_at &&
		now_ms() - progress_at >= STALLED_MS && all_leaderless())
		give_up(RD_KAFKA_PURGE_F_QUEUE);
}

/* Is there no leader for anything outstanding? */
static bool
all_leaderless(void)
{
	uint32_t	hopeless = 0;

	for (Topic *topic = topic_first(); topic != NULL; topic = topic->all)
	{
		for (int32_t i = 0; topic->outstanding > 0 && i < topic->npartitions; i++)
		{
			if (topic->partitions[i].leader < 0)
				hopeless += topic->partitions[i].outstanding;
		}
	}
	return hopeless == outstanding;
}

/* Nothing that waits will go out, nor what follows it in this batch */
static void
give_up_waiting(WaitingList *list, rd_kafka_resp_err_t err)
{
	Waiting    *waiting;

	while ((waiting = waiting_take(list)) != NULL)
	{
		FrameReader frame = {waiting->item, waiting->item + waiting->len, FRAME_PRODUCE, false};
		Record		record;

		record_read(&frame, &record);
		refuse(record.index, topic_get(record.topic), -1, err);
		free(waiting);
	}
}

/* The same for all lists: PURGE, or the brokers are down */
void
produce_give_up_waiting(rd_kafka_resp_err_t err)
{
	for (Topic *topic = topic_first(); topic != NULL; topic = topic->all)
		give_up_waiting(&topic->waiting, err);
	give_up_waiting(&no_room, err);
}

static void
give_up(int flags)
{
	giving_up = true;
	purge(flags);
}

/* A record on its way between two queues escapes: done again until all are back */
static void
purge(int flags)
{
	purge_flags = flags;
	purge_at = now_ms() + PURGE_AGAIN_MS;
	rd_kafka_purge(client.rk, flags | RD_KAFKA_PURGE_F_NON_BLOCKING);
}

/* PURGE: every record gets its outcome now */
void
produce_purge(void)
{
	produce_give_up_waiting(RD_KAFKA_RESP_ERR__PURGE_QUEUE);
	topics_distrust();
	if (outstanding > 0)
		give_up(RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
}

/* What is due by the clock; returns how long there is to sleep, -1 for ever */
int
produce_tick(int64_t now)
{
	if (outstanding == 0)
		return -1;

	if (purge_at > 0 && now >= purge_at)
		purge(purge_flags);

	/*
	 * No progress.  Either a broker hangs: then it doesn't answer this, and
	 * the brokers are reported down.  Or a partition lost its leader: then
	 * the answer says so, and no further record goes there.
	 */
	if (now - progress_at >= STALLED_MS)
	{
		for (Topic *topic = topic_first(); topic != NULL; topic = topic->all)
		{
			if (topic->outstanding > 0 && now - topic->answered_at >= STALLED_AGAIN_MS)
				topic_ask(topic);
		}
		return purge_at > 0 ? PURGE_AGAIN_MS : STALLED_AGAIN_MS;
	}
	return STALLED_MS;
}
