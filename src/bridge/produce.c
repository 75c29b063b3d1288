/*-------------------------------------------------------------------------
 *
 * produce.c
 *	  Records on their way to Kafka, and what became of them.
 *
 * Records of a topic go to librdkafka in the order they came.  One that can't
 * go yet waits: in its topic's list while the topic's metadata aren't known,
 * else in a common list while librdkafka's queue is full.  Then whatever comes
 * later waits behind it.
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

static WaitingList no_room;
static size_t waiting_bytes;
static uint32_t outstanding;	/* records with librdkafka */
static int64_t progress_at;		/* last sign that it gets on with them */
static int64_t purge_at;		/* 0: not purging */

/*
 * Which batch is being produced.  Where a record failed, nothing that comes
 * later in the same batch is sent: it would overtake.
 */
static uint32_t batch = 1;
static bool batch_ended;

static void read_record(FrameReader *frame, Record *record);
static void wait_in(WaitingList *list, const unsigned char *item, size_t len);
static void retry_waiting(WaitingList *list);
static void produce_item(const unsigned char *item, size_t len, const Record *record);
static bool trusted(const Topic *topic, int64_t now);
static int32_t choose_partition(const Topic *topic, const Record *record);
static rd_kafka_headers_t *make_headers(const Record *record);
static rd_kafka_resp_err_t hand_over(Topic *topic, const Record *record, int32_t partition);
static void report(uint32_t index, OutcomeClass class, int persisted,
				   int32_t partition, int64_t offset, rd_kafka_resp_err_t err);
static void report_unsent(uint32_t index, OutcomeClass class, int32_t partition,
						  rd_kafka_resp_err_t err);
static void refuse(uint32_t index, Topic *topic, int32_t partition, rd_kafka_resp_err_t err);
static void report_behind(uint32_t index, const Topic *topic, int32_t partition);
static void note_failure(Topic *topic, int32_t partition, rd_kafka_resp_err_t err);
static void give_up_waiting(WaitingList *list, rd_kafka_resp_err_t err);
static void give_up_all_waiting(rd_kafka_resp_err_t err);

/*---- in ----*/

/* Reads one item, leaving the frame behind it */
static void
read_record(FrameReader *frame, Record *record)
{
	int32_t		len;

	record->index = get_u32(frame);
	record->topic = get_string(frame);
	record->key = get_blob(frame, &record->key_len);
	record->value = get_blob(frame, &record->value_len);
	record->nheaders = get_u32(frame);
	record->headers = *frame;
	for (uint32_t i = 0; i < record->nheaders && !frame->bad; i++)
	{
		get_string(frame);
		get_blob(frame, &len);
	}
	if (frame->bad)
		fatal("received a malformed record");
}

/* PRODUCE */
void
produce_frame(FrameReader *frame)
{
	if (batch_ended && outstanding == 0 && waiting_bytes == 0)
	{
		batch++;
		batch_ended = false;
	}
	while (frame_more(frame))
	{
		const unsigned char *item = frame->next;
		size_t		len;
		Record		record;

		read_record(frame, &record);
		len = (size_t) (frame->next - item);
		if (no_room.first != NULL)
			wait_in(&no_room, item, len);
		else
			produce_item(item, len, &record);
	}
}

/* OVERSIZE */
void
produce_oversize(uint32_t index)
{
	report_unsent(index, OUTCOME_REJECTED, -1, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE);
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
	return waiting_bytes > WAITING_MAX;
}

static void
wait_in(WaitingList *list, const unsigned char *item, size_t len)
{
	Waiting    *waiting = xalloc(sizeof(Waiting) + len);

	waiting->len = len;
	memcpy(waiting->item, item, len);
	if (list->first == NULL)
		list->last = &list->first;
	*list->last = waiting;
	list->last = &waiting->next;
	waiting_bytes += len;
}

/*
 * Tries the records of a list again, in order.  One that has to go on waiting
 * stays at the head of the list; it is the caller's to see that nothing of
 * its topic overtakes it.
 */
static void
retry_waiting(WaitingList *list)
{
	WaitingList again = *list;

	list->first = NULL;
	while (again.first != NULL)
	{
		Waiting    *waiting = again.first;
		FrameReader frame = {waiting->item, waiting->item + waiting->len, FRAME_PRODUCE, false};
		Record		record;

		if (list->first != NULL)
		{
			/* The head of the list had no luck: the rest stays behind it */
			*list->last = again.first;
			list->last = again.last;
			return;
		}
		again.first = waiting->next;
		waiting_bytes -= waiting->len;
		read_record(&frame, &record);
		if (list != &no_room && no_room.first != NULL)
			wait_in(&no_room, waiting->item, waiting->len);
		else
			produce_item(waiting->item, waiting->len, &record);
		free(waiting);
	}
}

/* Produces a record, answers it, or lets it wait */
static void
produce_item(const unsigned char *item, size_t len, const Record *record)
{
	Topic	   *topic = topic_get(record->topic);
	int64_t		now = now_ms();
	int32_t		partition;
	rd_kafka_resp_err_t err;

	if (client.finished)
	{
		report_unsent(record->index, OUTCOME_CLIENT_FINISHED, -1, RD_KAFKA_RESP_ERR__FATAL);
		return;
	}
	if (topic->rkt != NULL && (topic->waiting.first != NULL || !trusted(topic, now)))
	{
		wait_in(&topic->waiting, item, len);
		topic_ask(topic);
		return;
	}
	if (topic->err != RD_KAFKA_RESP_ERR_NO_ERROR || topic->failed_batch == batch)
	{
		refuse(record->index, topic, -1, topic->err ? topic->err : RD_KAFKA_RESP_ERR__PURGE_QUEUE);
		return;
	}
	if (now - topic->answered_at > REFRESH_MS)
		topic_ask(topic);

	partition = choose_partition(topic, record);
	if (topic->partitions[partition].failed_batch == batch)
		report_behind(record->index, topic, partition);
	else if (topic->partitions[partition].leader < 0)
		refuse(record->index, topic, partition, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE);
	else
	{
		err = hand_over(topic, record, partition);
		if (err == RD_KAFKA_RESP_ERR__QUEUE_FULL)
			wait_in(&no_room, item, len);
		else if (err == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE)
			produce_oversize(record->index);
		else if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			/* librdkafka knows better than we: ask before the next one */
			topic->verified = false;
			refuse(record->index, topic, partition, err);
		}
	}
}

/* May records go by what is known of the topic? */
static bool
trusted(const Topic *topic, int64_t now)
{
	if (!topic->verified)
		return false;
	return (topic->err == RD_KAFKA_RESP_ERR_NO_ERROR && topic->leaderless == 0) ||
		now - topic->answered_at < BAD_NEWS_MS;
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

static rd_kafka_headers_t *
make_headers(const Record *record)
{
	FrameReader frame = record->headers;
	rd_kafka_headers_t *headers;

	if (record->nheaders == 0)
		return NULL;
	headers = rd_kafka_headers_new(record->nheaders);
	for (uint32_t i = 0; i < record->nheaders; i++)
	{
		const char *name = get_string(&frame);
		int32_t		len;
		const void *value = get_blob(&frame, &len);

		rd_kafka_header_add(headers, name, -1, value, value ? len : 0);
	}
	return headers;
}

static rd_kafka_resp_err_t
hand_over(Topic *topic, const Record *record, int32_t partition)
{
	rd_kafka_headers_t *headers = make_headers(record);
	rd_kafka_resp_err_t err;

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
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		if (headers != NULL)
			rd_kafka_headers_destroy(headers);
		return err;
	}
	if (outstanding++ == 0)
		progress_at = now_ms();
	topic->outstanding++;
	return err;
}

/*---- out ----*/

/*
 * The text is that of the code: rd_kafka_message_errstr takes a produced
 * record's payload for one.
 */
static void
report(uint32_t index, OutcomeClass class, int persisted, int32_t partition,
	   int64_t offset, rd_kafka_resp_err_t err)
{
	frame_item(&client.out, FRAME_OUTCOMES);
	put_u32(&client.out, index);
	put_u8(&client.out, (uint8_t) class);
	put_u8(&client.out, (uint8_t) persisted);
	put_u32(&client.out, (uint32_t) partition);
	put_u64(&client.out, (uint64_t) offset);
	put_string(&client.out, class == OUTCOME_OK ? "" : error_name(err));
	put_string(&client.out, class == OUTCOME_OK ? "" : rd_kafka_err2str(err));
}

/* The outcome of a record that librdkafka never had */
static void
report_unsent(uint32_t index, OutcomeClass class, int32_t partition,
			  rd_kafka_resp_err_t err)
{
	report(index, class, PERSISTED_NOT, partition, -1, err);
}

/* Remembers, until the batch is over, that nothing may follow this record */
static void
note_failure(Topic *topic, int32_t partition, rd_kafka_resp_err_t err)
{
	if (partition >= 0 && partition < topic->npartitions)
	{
		topic->partitions[partition].failed_batch = batch;
		topic->partitions[partition].err = err;
	}
	else
		topic->failed_batch = batch;
}

/* The outcome of a record that can't go out as things are */
static void
refuse(uint32_t index, Topic *topic, int32_t partition, rd_kafka_resp_err_t err)
{
	note_failure(topic, partition, err);
	report_unsent(index, classify_refusal(err), partition, err);
}

/* The outcome of a record that may not overtake one that failed */
static void
report_behind(uint32_t index, const Topic *topic, int32_t partition)
{
	rd_kafka_resp_err_t err = topic->partitions[partition].err;

	switch (classify_outcome(err))
	{
		case OUTCOME_REQUEST_REJECTED:
		case OUTCOME_CORRUPT:
			/* The earlier one's fault, not this one's */
			err = RD_KAFKA_RESP_ERR__PURGE_QUEUE;
			break;
		default:
			break;
	}
	report_unsent(index, classify_outcome(err), partition, err);
}

/* Delivery reports */
void
produce_reports(rd_kafka_event_t *event)
{
	const rd_kafka_message_t *message;

	while ((message = rd_kafka_event_message_next(event)) != NULL)
	{
		Topic	   *topic = rd_kafka_topic_opaque(message->rkt);
		OutcomeClass class = classify_outcome(message->err);
		int			persisted = PERSISTED_NOT;

		switch (rd_kafka_message_status(message))
		{
			case RD_KAFKA_MSG_STATUS_NOT_PERSISTED:
				persisted = PERSISTED_NOT;
				break;
			case RD_KAFKA_MSG_STATUS_POSSIBLY_PERSISTED:
				persisted = PERSISTED_POSSIBLY;
				break;
			case RD_KAFKA_MSG_STATUS_PERSISTED:
				persisted = PERSISTED_YES;
				break;
		}
		if (class != OUTCOME_OK)
		{
			topic->verified = false;
			note_failure(topic, message->partition, message->err);
		}
		topic->outstanding--;
		outstanding--;
		report((uint32_t) (uintptr_t) message->_private, class, persisted,
			   message->partition, message->offset, message->err);
	}
	progress_at = now_ms();
	if (outstanding == 0)
		purge_at = 0;
	retry_waiting(&no_room);
}

/* Metadata have come, or no answer: the topic's records needn't wait more */
void
produce_topic_answered(Topic *topic, rd_kafka_resp_err_t err)
{
	if (err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		if (topic->waiting.first != NULL)
			note_failure(topic, -1, err);
		give_up_waiting(&topic->waiting, err);
	}
	else
		retry_waiting(&topic->waiting);
}

static void
give_up_waiting(WaitingList *list, rd_kafka_resp_err_t err)
{
	while (list->first != NULL)
	{
		Waiting    *waiting = list->first;
		FrameReader frame = {waiting->item, waiting->item + waiting->len, FRAME_PRODUCE, false};

		list->first = waiting->next;
		waiting_bytes -= waiting->len;
		report_unsent(get_u32(&frame), classify_outcome(err), -1, err);
		free(waiting);
	}
}

static void
give_up_all_waiting(rd_kafka_resp_err_t err)
{
	give_up_waiting(&no_room, err);
	for (Topic *topic = topic_first(); topic != NULL; topic = topic->all)
		give_up_waiting(&topic->waiting, err);
}

/* PURGE: every record gets its outcome now */
void
produce_purge(void)
{
	give_up_all_waiting(RD_KAFKA_RESP_ERR__PURGE_QUEUE);
	topics_distrust();
	if (outstanding == 0)
		return;
	rd_kafka_purge(client.rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT |
				   RD_KAFKA_PURGE_F_NON_BLOCKING);
	purge_at = now_ms() + PURGE_AGAIN_MS;
}

/* What is due by the clock; returns how long there is to sleep, -1 for ever */
int
produce_tick(int64_t now)
{
	if (outstanding == 0)
		return -1;

	/* A record on its way between two queues escapes a purge */
	if (purge_at > 0 && now >= purge_at)
		produce_purge();

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
