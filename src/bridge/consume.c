/*-------------------------------------------------------------------------
 *
 * consume.c
 *	  Partitions being read.
 *
 * Each reading has a queue of its own: what an ended one left behind goes
 * with its queue and can't show up under a later one's tag.  All queues ring
 * the same eventfd.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "client.h"

/* While more than this waits for the worker, nothing is taken from librdkafka */
#define OUTPUT_MAX			((size_t) 4 * 1024 * 1024)
#define MESSAGES_A_TURN		500
/* Topics being read are looked at so often */
#define REFRESH_MS			5000
/* An error that lasts is told again so often */
#define ERROR_AGAIN_MS		10000
/* Where the log of a reading ends is looked up so often */
#define END_MS				100
/* What a record's frame takes beside topic, key, value and headers */
#define RECORD_OVERHEAD		100

typedef struct Reading
{
	TAILQ_ENTRY(Reading) link;
	uint32_t	tag;
	Topic	   *topic;
	int32_t		partition;
	rd_kafka_queue_t *queue;
	bool		first_only;		/* ends with the first record */
	int64_t		end;			/* of the log, as the last fetch saw it; -1: unknown */
	int64_t		end_at;			/* when that was looked up */
	int64_t		next;			/* behind the last record passed on; -1: none was */
	rd_kafka_resp_err_t err;	/* last one reported */
	int64_t		err_at;
} Reading;

static TAILQ_HEAD(ReadingList, Reading) readings = TAILQ_HEAD_INITIALIZER(readings);
static Reading *serving;		/* the one whose queue is being polled */
static int64_t refresh_at;

static void end_reading(Reading *reading);
static bool serve_reading(Reading *reading);
static void caught_up(const Reading *reading, int64_t offset);
static void serve_message(Reading *reading, const rd_kafka_message_t *message);
static size_t headers_size(const rd_kafka_headers_t *headers, uint32_t *count);
static void look_for_end(Reading *reading);
static void send_record(Reading *reading, const rd_kafka_message_t *message,
						const rd_kafka_headers_t *headers, uint32_t nheaders);
static void suspect(Topic *topic);
static void reading_error(Reading *reading, rd_kafka_resp_err_t err, int64_t offset,
						  const char *text);

/* CONSUME */
void
consume_start(uint32_t tag, const char *topic, int32_t partition, int64_t offset,
			  bool first_only)
{
	Reading    *reading;
	Reading    *next;
	const uint64_t one = 1;
	Topic	   *known = topic_get(topic);

	/* librdkafka reads a partition once; the latest wish counts */
	for (reading = TAILQ_FIRST(&readings); reading != NULL; reading = next)
	{
		next = TAILQ_NEXT(reading, link);
		if (reading->tag == tag ||
			(reading->topic == known && reading->partition == partition))
			end_reading(reading);
	}
	if (known->rkt == NULL)
	{
		consume_error(tag, known->err, -1, rd_kafka_err2str(known->err));
		return;
	}

	reading = xalloc(sizeof(Reading));
	reading->tag = tag;
	reading->topic = known;
	reading->end = reading->next = -1;
	reading->partition = partition;
	reading->first_only = first_only;
	reading->queue = rd_kafka_queue_new(client.rk);
	rd_kafka_queue_io_event_enable(reading->queue, client.wakeup, &one, sizeof(one));
	if (offset < 0 ||
		rd_kafka_consume_start_queue(known->rkt, partition, offset, reading->queue) != 0)
	{
		rd_kafka_resp_err_t err = offset < 0 ? RD_KAFKA_RESP_ERR__INVALID_ARG : rd_kafka_last_error();

		rd_kafka_queue_destroy(reading->queue);
		free(reading);
		consume_error(tag, err, -1, rd_kafka_err2str(err));
		return;
	}
	known->readings++;
	TAILQ_INSERT_TAIL(&readings, reading, link);
	topic_ask(known);
}

/* UNCONSUME */
void
consume_stop(uint32_t tag)
{
	Reading    *reading;

	TAILQ_FOREACH(reading, &readings, link)
	{
		if (reading->tag == tag)
		{
			end_reading(reading);
			return;
		}
	}
}

/* Waits for librdkafka's own thread, which never waits for a broker */
static void
end_reading(Reading *reading)
{
	TAILQ_REMOVE(&readings, reading, link);
	rd_kafka_consume_stop(reading->topic->rkt, reading->partition);
	rd_kafka_queue_io_event_enable(reading->queue, -1, NULL, 0);
	rd_kafka_queue_destroy(reading->queue);
	reading->topic->readings--;
	free(reading);
}

/*
 * Passes on what was read; true if there may be more.  While the worker
 * doesn't keep up nothing is taken; the socket wakes us once it does.  Who had
 * its turn goes to the end of the line.
 */
bool
consume_serve(void)
{
	Reading    *last = TAILQ_LAST(&readings, ReadingList);
	bool		was_last = last == NULL;
	bool		more = false;

	while (!was_last)
	{
		Reading    *reading = TAILQ_FIRST(&readings);

		if (frame_out_pending(&client.out) > OUTPUT_MAX)
			return false;
		was_last = reading == last;
		TAILQ_REMOVE(&readings, reading, link);
		TAILQ_INSERT_TAIL(&readings, reading, link);
		if (serve_reading(reading))
			more = true;
	}
	return more;
}

/*
 * librdkafka says some errors of a partition only here, called from within
 * its queue's poll: metadata will tell what is the matter.
 */
void
consume_trouble(rd_kafka_t *rk, int err, const char *reason, void *opaque)
{
	(void) rk;
	(void) err;
	(void) reason;
	(void) opaque;
	if (serving != NULL)
		suspect(serving->topic);
}

/*
 * Something is wrong with a topic.  Whatever its metadata say: if it was made
 * anew meanwhile they say that all is well, so the worker must hear of them
 * and look whether its position is still in this log.
 */
static void
suspect(Topic *topic)
{
	if (topic->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		topic->changed = true;
	topic_ask(topic);
}

/* A turn of one reading, so that none starves another; it may be its end */
static bool
serve_reading(Reading *reading)
{
	rd_kafka_message_t *messages[MESSAGES_A_TURN];
	bool		ended = false;
	ssize_t		n;

	serving = reading;
	n = rd_kafka_consume_batch_queue(reading->queue, 0, messages, MESSAGES_A_TURN);
	serving = NULL;
	for (ssize_t i = 0; i < n; i++)
	{
		if (ended)
		{
			rd_kafka_message_destroy(messages[i]);
			continue;
		}
		if (messages[i]->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		{
			serve_message(reading, messages[i]);
			ended = reading->first_only;
		}
		else if (messages[i]->err == RD_KAFKA_RESP_ERR__PARTITION_EOF)
		{
			/* comes half a second after the last record, and is no news then */
			if (messages[i]->offset != reading->next)
				caught_up(reading, messages[i]->offset);
		}
		else
		{
			suspect(reading->topic);
			reading_error(reading, messages[i]->err, messages[i]->offset,
						  rd_kafka_message_errstr(messages[i]));
		}
		rd_kafka_message_destroy(messages[i]);
	}
	if (ended)
		end_reading(reading);
	return n == MESSAGES_A_TURN && !ended;
}

static void
caught_up(const Reading *reading, int64_t offset)
{
	frame_begin(&client.out, FRAME_CAUGHT_UP);
	put_u32(&client.out, reading->tag);
	put_u64(&client.out, (uint64_t) offset);
	frame_end(&client.out);
}

static void
serve_message(Reading *reading, const rd_kafka_message_t *message)
{
	rd_kafka_headers_t *headers = NULL;
	uint32_t	nheaders = 0;
	size_t		size = RECORD_OVERHEAD + strlen(reading->topic->name) +
		message->key_len + message->len;

	if (rd_kafka_message_headers(message, &headers) == RD_KAFKA_RESP_ERR_NO_ERROR)
		size += headers_size(headers, &nheaders);
	if (size > FRAME_MAX)
	{
		consume_error(reading->tag, RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
					  message->offset, "record is larger than outbox can take");
		return;
	}
	reading->err = RD_KAFKA_RESP_ERR_NO_ERROR;

	/* A large record gets a frame of its own, so that no frame is too long */
	if (size >= FRAME_GROUP)
		frame_end(&client.out);
	send_record(reading, message, headers, nheaders);
}

static size_t
headers_size(const rd_kafka_headers_t *headers, uint32_t *count)
{
	const char *name;
	const void *value;
	size_t		len;
	size_t		size = 0;

	for (*count = 0;
		 rd_kafka_header_get_all(headers, *count, &name, &value, &len) == RD_KAFKA_RESP_ERR_NO_ERROR;
		 ++*count)
		size += strlen(name) + len + 10;
	return size;
}

/* No question to the brokers: each fetch brings it */
static void
look_for_end(Reading *reading)
{
	int64_t		now = now_ms();
	int64_t		low;
	int64_t		high;

	if (reading->end_at != 0 && now - reading->end_at < END_MS)
		return;
	reading->end_at = now;
	if (rd_kafka_get_watermark_offsets(client.rk, reading->topic->name, reading->partition,
									   &low, &high) == RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0)
		reading->end = high;
}

static void
send_record(Reading *reading, const rd_kafka_message_t *message,
			const rd_kafka_headers_t *headers, uint32_t nheaders)
{
	rd_kafka_timestamp_type_t type;
	int64_t		timestamp = rd_kafka_message_timestamp(message, &type);

	look_for_end(reading);
	reading->next = message->offset + 1;
	frame_item(&client.out, FRAME_RECORDS);
	put_u32(&client.out, reading->tag);
	put_string(&client.out, reading->topic->name);
	put_u32(&client.out, (uint32_t) message->partition);
	put_u64(&client.out, (uint64_t) message->offset);
	put_u64(&client.out, (uint64_t) reading->end);
	put_u64(&client.out, (uint64_t) (type == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE ? -1 : timestamp));
	put_blob(&client.out, message->key, (int32_t) message->key_len);
	put_blob(&client.out, message->payload, (int32_t) message->len);
	put_u32(&client.out, nheaders);
	for (uint32_t i = 0; i < nheaders; i++)
	{
		const char *name;
		const void *value;
		size_t		len;

		rd_kafka_header_get_all(headers, i, &name, &value, &len);
		put_string(&client.out, name);
		put_blob(&client.out, value, (int32_t) len);
	}
}

/* An error of a reading; the same one isn't told at every fetch */
static void
reading_error(Reading *reading, rd_kafka_resp_err_t err, int64_t offset, const char *text)
{
	int64_t		now = now_ms();

	if (reading->err == err && now - reading->err_at < ERROR_AGAIN_MS)
		return;
	reading->err = err;
	reading->err_at = now;
	consume_error(reading->tag, err, offset, text);
}

/* Metadata have come: librdkafka is slow to say that a partition isn't there */
void
consume_topic_answered(const Topic *topic)
{
	Reading    *reading;

	TAILQ_FOREACH(reading, &readings, link)
	{
		rd_kafka_resp_err_t err = topic->err;

		if (reading->topic != topic)
			continue;
		if (err == RD_KAFKA_RESP_ERR_NO_ERROR && reading->partition >= topic->npartitions)
			err = RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION;
		if (classify_partition(err) != PARTITION_RETRYING)
			reading_error(reading, err, -1, rd_kafka_err2str(err));
	}
}

/* Tells the worker that a reading, or a question about a partition, failed */
void
consume_error(uint32_t tag, rd_kafka_resp_err_t err, int64_t offset, const char *text)
{
	frame_begin(&client.out, FRAME_PARTITION_ERROR);
	put_u32(&client.out, tag);
	put_u8(&client.out, (uint8_t) classify_partition(err));
	put_u64(&client.out, (uint64_t) (offset < 0 ? -1 : offset));
	put_string(&client.out, error_name(err));
	put_string(&client.out, text);
	frame_end(&client.out);
}

/* What is due by the clock; returns how long there is to sleep, -1 for ever */
int
consume_tick(int64_t now)
{
	if (TAILQ_EMPTY(&readings))
		return -1;
	if (now >= refresh_at)
	{
		refresh_at = now + REFRESH_MS;
		for (Topic *topic = topic_first(); topic != NULL; topic = topic->all)
		{
			if (topic->readings > 0)
				topic_ask(topic);
		}
	}
	return (int) (refresh_at - now);
}
