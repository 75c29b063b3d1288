/*-------------------------------------------------------------------------
 *
 * watch.c
 *	  Where partitions begin and end: the answers to WATCH.
 *
 * All but watch_report runs in the helper's thread.
 *
 *-------------------------------------------------------------------------
 */
#include "question.h"

static rd_kafka_topic_partition_list_t *watched(const Question *questions);
static rd_kafka_resp_err_t find_offsets(rd_kafka_topic_partition_list_t *list, int64_t which);
static bool take_watermarks(Question *question, const rd_kafka_topic_partition_list_t *lows,
							const rd_kafka_topic_partition_list_t *highs);
static bool is_silence(rd_kafka_resp_err_t err);

/*
 * Runs in the thread.  A broker answers in turn, and first the fetch that it
 * holds back until a record comes, for half a second: one by one each question
 * would wait for that, and each answer would wake the worker.  What can't be
 * answered so stays in the list, to be asked for alone, but for those of a
 * leader that keeps silent: the others' would wait for that again and again.
 */
void
watch_answer_together(QuestionList *questions, QuestionList *answered)
{
	rd_kafka_topic_partition_list_t *low = watched(questions->first);
	rd_kafka_topic_partition_list_t *high = rd_kafka_topic_partition_list_copy(low);
	rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;
	int			n = 0;

	if (low->cnt > 1)
	{
		err = find_offsets(low, RD_KAFKA_OFFSET_BEGINNING);
		if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
			err = find_offsets(high, RD_KAFKA_OFFSET_END);
		for (Question *question = questions->first; question; question = question->next)
			n++;
	}
	for (; n > 0; n--)
	{
		Question   *question = question_take(questions);
		bool		done = false;

		if (err == RD_KAFKA_RESP_ERR_NO_ERROR)
			done = take_watermarks(question, low, high);
		else if (question->leader >= 0 && is_silence(err))
		{
			question->err = err;
			done = true;
		}
		question_append(done ? answered : questions, question);
	}
	rd_kafka_topic_partition_list_destroy(low);
	rd_kafka_topic_partition_list_destroy(high);
}

static bool
is_silence(rd_kafka_resp_err_t err)
{
	return err == RD_KAFKA_RESP_ERR__TIMED_OUT || err == RD_KAFKA_RESP_ERR__TIMED_OUT_QUEUE ||
		err == RD_KAFKA_RESP_ERR__TRANSPORT;
}

/* The partitions that nothing but watermarks is asked of */
static rd_kafka_topic_partition_list_t *
watched(const Question *questions)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(QUESTIONS_TOGETHER);

	for (const Question *question = questions; question; question = question->next)
	{
		if (question->time < 0 &&
			rd_kafka_topic_partition_list_find(list, question->topic_name,
											   question->partition) == NULL)
			rd_kafka_topic_partition_list_add(list, question->topic_name, question->partition);
	}
	return list;
}

/* Where the logs begin or end: in the protocol these are times like others */
static rd_kafka_resp_err_t
find_offsets(rd_kafka_topic_partition_list_t *list, int64_t which)
{
	for (int i = 0; i < list->cnt; i++)
		list->elems[i].offset = which;
	return rd_kafka_offsets_for_times(client.rk, list, ANSWER_TIMEOUT_MS);
}

/* True if both were found out */
static bool
take_watermarks(Question *question, const rd_kafka_topic_partition_list_t *lows,
				const rd_kafka_topic_partition_list_t *highs)
{
	const rd_kafka_topic_partition_t *low;
	const rd_kafka_topic_partition_t *high;

	low = rd_kafka_topic_partition_list_find(lows, question->topic_name, question->partition);
	high = rd_kafka_topic_partition_list_find(highs, question->topic_name, question->partition);
	if (question->time >= 0 || low == NULL || high == NULL ||
		low->err != RD_KAFKA_RESP_ERR_NO_ERROR || high->err != RD_KAFKA_RESP_ERR_NO_ERROR ||
		low->offset < 0 || high->offset < low->offset)
		return false;
	question->low = low->offset;
	question->high = high->offset;
	question->at_time = -1;
	question->err = RD_KAFKA_RESP_ERR_NO_ERROR;
	return true;
}

/*
 * A time is asked for last: a record that comes meanwhile is found by it, or
 * lies behind the end that is known.
 */
void
watch_answer(Question *question)
{
	const char *topic = question->topic_name;
	int32_t		partition = question->partition;

	question->at_time = -1;
	question->err = watch_find(topic, partition, RD_KAFKA_OFFSET_BEGINNING, ANSWER_TIMEOUT_MS,
							   &question->low);
	if (question->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		question->err = watch_find(topic, partition, RD_KAFKA_OFFSET_END, ANSWER_TIMEOUT_MS,
								   &question->high);
	if (question->err != RD_KAFKA_RESP_ERR_NO_ERROR || question->time < 0)
		return;
	question->err = watch_find(topic, partition, question->time, ANSWER_TIMEOUT_MS,
							   &question->at_time);
	if (question->at_time < 0)
		question->at_time = question->high;
}

/* A partition's own error says more than that of the question */
rd_kafka_resp_err_t
watch_find(const char *topic, int32_t partition, int64_t time, int timeout_ms, int64_t *offset)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_t *asked = rd_kafka_topic_partition_list_add(list, topic, partition);
	rd_kafka_resp_err_t err;

	asked->offset = time;
	err = rd_kafka_offsets_for_times(client.rk, list, timeout_ms);
	if (asked->err != RD_KAFKA_RESP_ERR_NO_ERROR)
		err = asked->err;
	else if (err == RD_KAFKA_RESP_ERR_NO_ERROR && time < 0 && asked->offset < 0)
		err = RD_KAFKA_RESP_ERR__TIMED_OUT; /* it wasn't in the answer */
	*offset = asked->offset;
	rd_kafka_topic_partition_list_destroy(list);
	return err;
}

void
watch_report(const Question *question)
{
	if (question->err != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		consume_error(question->tag, question->err, -1, rd_kafka_err2str(question->err));
		return;
	}
	frame_begin(&client.out, FRAME_WATERMARKS);
	put_u32(&client.out, question->tag);
	put_u64(&client.out, (uint64_t) question->low);
	put_u64(&client.out, (uint64_t) question->high);
	put_u64(&client.out, (uint64_t) question->at_time);
	frame_end(&client.out);
}
