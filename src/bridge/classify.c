/*-------------------------------------------------------------------------
 *
 * classify.c
 *	  What librdkafka's error codes mean to outbox: doc/kafka-errors.md as code.
 *
 * A code that isn't in a table is reported by its name and never makes a
 * message DEAD.
 *
 *-------------------------------------------------------------------------
 */
#include "client.h"

typedef struct ErrorClass
{
	rd_kafka_resp_err_t err;
	int			class;
} ErrorClass;

#define ERR(name)	RD_KAFKA_RESP_ERR_##name
#define lengthof(array)	(sizeof(array) / sizeof((array)[0]))

/* Known to librdkafka from 2.4 and 2.1 on */
#define ERR_INVALID_DIFFERENT_RECORD	((rd_kafka_resp_err_t) -138)
#define ERR_LOG_TRUNCATION	((rd_kafka_resp_err_t) -139)

/* In a delivery report: the record was with librdkafka */
static const ErrorClass report_classes[] =
{
	{ERR(NO_ERROR), OUTCOME_OK},
	{ERR(DUPLICATE_SEQUENCE_NUMBER), OUTCOME_OK},

	/* Given up on, by us or by a timeout */
	{ERR(_PURGE_QUEUE), OUTCOME_RETRIABLE},
	{ERR(_PURGE_INFLIGHT), OUTCOME_RETRIABLE},
	{ERR(_MSG_TIMED_OUT), OUTCOME_RETRIABLE},

	/* librdkafka retries these by itself; if ever it reports them: */
	{ERR(NOT_LEADER_FOR_PARTITION), OUTCOME_RETRIABLE},
	{ERR(LEADER_NOT_AVAILABLE), OUTCOME_RETRIABLE},
	{ERR(BROKER_NOT_AVAILABLE), OUTCOME_RETRIABLE},
	{ERR(REPLICA_NOT_AVAILABLE), OUTCOME_RETRIABLE},
	{ERR(NOT_ENOUGH_REPLICAS), OUTCOME_RETRIABLE},
	{ERR(NOT_ENOUGH_REPLICAS_AFTER_APPEND), OUTCOME_RETRIABLE},
	{ERR(REQUEST_TIMED_OUT), OUTCOME_RETRIABLE},
	{ERR(NETWORK_EXCEPTION), OUTCOME_RETRIABLE},
	{ERR(KAFKA_STORAGE_ERROR), OUTCOME_RETRIABLE},
	{ERR(COORDINATOR_LOAD_IN_PROGRESS), OUTCOME_RETRIABLE},
	{ERR(_TIMED_OUT), OUTCOME_RETRIABLE},
	{ERR(_TIMED_OUT_QUEUE), OUTCOME_RETRIABLE},
	{ERR(_TRANSPORT), OUTCOME_RETRIABLE},
	{ERR(_ALL_BROKERS_DOWN), OUTCOME_RETRIABLE},

	/* The broker turned the whole request down for one of its records */
	{ERR(MSG_SIZE_TOO_LARGE), OUTCOME_REQUEST_REJECTED},
	{ERR(RECORD_LIST_TOO_LARGE), OUTCOME_REQUEST_REJECTED},
	{ERR(INVALID_RECORD), OUTCOME_REQUEST_REJECTED},
	{ERR_INVALID_DIFFERENT_RECORD, OUTCOME_REQUEST_REJECTED},
	{ERR(POLICY_VIOLATION), OUTCOME_REQUEST_REJECTED},
	{ERR(UNSUPPORTED_FOR_MESSAGE_FORMAT), OUTCOME_REQUEST_REJECTED},

	{ERR(INVALID_MSG), OUTCOME_CORRUPT},

	{ERR(UNKNOWN_TOPIC_OR_PART), OUTCOME_TOPIC_MISSING},
	{ERR(_UNKNOWN_TOPIC), OUTCOME_TOPIC_MISSING},
	{ERR(_UNKNOWN_PARTITION), OUTCOME_TOPIC_MISSING},
	{ERR(TOPIC_AUTHORIZATION_FAILED), OUTCOME_TOPIC_DENIED},
	{ERR(TOPIC_EXCEPTION), OUTCOME_TOPIC_MISCONFIGURED},
	{ERR(UNSUPPORTED_COMPRESSION_TYPE), OUTCOME_TOPIC_MISCONFIGURED},
	/* The attempt's own time: a later one has another */
	{ERR(INVALID_TIMESTAMP), OUTCOME_TOPIC_MISCONFIGURED},

	{ERR(OUT_OF_ORDER_SEQUENCE_NUMBER), OUTCOME_CLIENT_FINISHED},
	{ERR(UNKNOWN_PRODUCER_ID), OUTCOME_CLIENT_FINISHED},
	{ERR(INVALID_PRODUCER_EPOCH), OUTCOME_CLIENT_FINISHED},
	{ERR(INVALID_PRODUCER_ID_MAPPING), OUTCOME_CLIENT_FINISHED},
	{ERR(CLUSTER_AUTHORIZATION_FAILED), OUTCOME_CLIENT_FINISHED},
	{ERR(_FATAL), OUTCOME_CLIENT_FINISHED},
	{ERR(_FENCED), OUTCOME_CLIENT_FINISHED},
	{ERR(_GAPLESS_GUARANTEE), OUTCOME_CLIENT_FINISHED},
};

/* While a partition is read */
static const ErrorClass partition_classes[] =
{
	{ERR(_AUTO_OFFSET_RESET), PARTITION_OFFSET_LOST},
	{ERR_LOG_TRUNCATION, PARTITION_OFFSET_LOST},
	{ERR(OFFSET_OUT_OF_RANGE), PARTITION_OFFSET_LOST},

	{ERR(UNKNOWN_TOPIC_OR_PART), PARTITION_TOPIC_MISSING},
	{ERR(_UNKNOWN_TOPIC), PARTITION_TOPIC_MISSING},
	{ERR(_UNKNOWN_PARTITION), PARTITION_TOPIC_MISSING},
	{ERR(TOPIC_EXCEPTION), PARTITION_TOPIC_MISSING},
	{ERR(TOPIC_AUTHORIZATION_FAILED), PARTITION_TOPIC_DENIED},

	{ERR(MSG_SIZE_TOO_LARGE), PARTITION_UNREADABLE},
	{ERR(_BAD_MSG), PARTITION_UNREADABLE},
	{ERR(_BAD_COMPRESSION), PARTITION_UNREADABLE},
	{ERR(INVALID_MSG), PARTITION_UNREADABLE},
	{ERR(_NOT_IMPLEMENTED), PARTITION_UNREADABLE},
	{ERR(_UNDERFLOW), PARTITION_UNREADABLE},

	{ERR(_FATAL), PARTITION_CLIENT_FINISHED},
	{ERR(_DESTROY), PARTITION_CLIENT_FINISHED},
};

static int	lookup(const ErrorClass *table, size_t n, rd_kafka_resp_err_t err,
				   int otherwise);

static int
lookup(const ErrorClass *table, size_t n, rd_kafka_resp_err_t err, int otherwise)
{
	for (size_t i = 0; i < n; i++)
	{
		if (table[i].err == err)
			return table[i].class;
	}
	return otherwise;
}

/* The error of a delivery report */
OutcomeClass
classify_outcome(rd_kafka_resp_err_t err)
{
	/* After a fatal error nothing else that is said matters */
	if (client.finished && err != ERR(NO_ERROR))
		return OUTCOME_CLIENT_FINISHED;
	return lookup(report_classes, lengthof(report_classes), err, OUTCOME_UNKNOWN);
}

/*
 * The error of the call that hands a record to librdkafka.  The size was
 * checked for this record alone then, so it alone is too large.
 */
OutcomeClass
classify_refusal(rd_kafka_resp_err_t err)
{
	if (err == ERR(MSG_SIZE_TOO_LARGE))
		return OUTCOME_REJECTED;
	return classify_outcome(err);
}

/* The error of a topic's metadata, or of the request for it */
OutcomeClass
classify_topic(rd_kafka_resp_err_t err)
{
	return lookup(report_classes, lengthof(report_classes), err, OUTCOME_UNKNOWN);
}

/* The error of a partition being read; what isn't known passes, or persists */
PartitionErrorClass
classify_partition(rd_kafka_resp_err_t err)
{
	return lookup(partition_classes, lengthof(partition_classes), err,
				  PARTITION_RETRYING);
}

/* The name of an error as the documentation has it; "" if it is none */
const char *
error_name(rd_kafka_resp_err_t err)
{
	return err == ERR(NO_ERROR) ? "" : rd_kafka_err2name(err);
}
