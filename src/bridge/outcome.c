/*-------------------------------------------------------------------------
 *
 * outcome.c
 *	  Telling the worker what became of its records.
 *
 *-------------------------------------------------------------------------
 */
#include "client.h"

static void put_outcome(uint32_t index, OutcomeClass class, OutcomePersisted persisted,
						const Topic *topic, int32_t partition, int64_t offset,
						rd_kafka_resp_err_t err);

/*
 * The text is that of the code: rd_kafka_message_errstr takes a produced
 * record's payload for one.  Of a client that is finished it is the reason.
 */
static void
put_outcome(uint32_t index, OutcomeClass class, OutcomePersisted persisted,
			const Topic *topic, int32_t partition, int64_t offset, rd_kafka_resp_err_t err)
{
	const char *detail = rd_kafka_err2str(err);
	char		text[512];

	if (class == OUTCOME_CLIENT_FINISHED && rd_kafka_fatal_error(client.rk, NULL, 0))
	{
		err = rd_kafka_fatal_error(client.rk, text, sizeof(text));
		detail = text;
	}
	frame_item(&client.out, FRAME_OUTCOMES);
	put_u32(&client.out, index);
	put_u8(&client.out, (uint8_t) class);
	put_u8(&client.out, (uint8_t) persisted);
	put_u32(&client.out, (uint32_t) partition);
	put_u32(&client.out, (uint32_t) (topic != NULL ? topic->npartitions : -1));
	put_u64(&client.out, (uint64_t) offset);
	put_string(&client.out, class == OUTCOME_OK ? "" : error_name(err));
	put_string(&client.out, class == OUTCOME_OK ? "" : detail);
}

/* The outcome of a record that librdkafka never had; topic may be NULL */
void
outcome_unsent(uint32_t index, OutcomeClass class, const Topic *topic, int32_t partition,
			   rd_kafka_resp_err_t err)
{
	put_outcome(index, class, PERSISTED_NOT, topic, partition, -1, err);
}

/* The outcome that a delivery report brings */
void
outcome_report(const rd_kafka_message_t *message, OutcomeClass class)
{
	OutcomePersisted persisted = PERSISTED_NOT;

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
	put_outcome((uint32_t) (uintptr_t) message->_private, class, persisted,
				rd_kafka_topic_opaque(message->rkt), message->partition, message->offset,
				message->err);
}
