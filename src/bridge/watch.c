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
static bool find_offsets(rd_kafka_topic_partition_list_t *list, int64_t which);
static bool take_watermarks(Question *question, const rd_kafka_topic_partition_list_t *lows,
							const rd_kafka_topic_partition_list_t *highs);
static void find_time(Question *question);

/*
 * Runs in the thread.  A broker answers in turn, and first the fetch that it
 * holds back until a record comes, for half a second: one by one each question
 * would wait for that, and each answer would wake the worker.  What can't be
 * answered so stays in the list, to be asked for alone.
 */
void
watch_answer_together(QuestionList *questions, QuestionList *answered)
{
	rd_kafka_topic_partition_list_t *low = watched(questions->first);
	rd_kafka_topic_partition_list_t *high = rd_kafka_topic_partition_list_copy(low);
	int			n = 0;

	if (low->cnt > 1 && find_offsets(low, RD_KAFKA_OFFSET_BEGINNING) &&
		find_offsets(high, RD_KAFKA_OFFSET_END))
	{
		for (Question *question = questions->first; question; question = question->next)
			n++;
	}
	for (; n > 0; n--)
	{
		Question   *question = question_take(questions);

		question_append(take_watermarks(question, low, high) ? answered : questions, question);
	}
	rd_kafka_topic_partition_list_destroy(low);
	rd_kafka_topic_partition_list_destroy(high);
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
static bool
find_offsets(rd_kafka_topic_partition_list_t *list, int64_t which)
{
	for (int i = 0; i < list->cnt; i++)
		list->elems[i].offset = which;
	return rd_kafka_offsets_for_times(client.rk, list, ANSWER_TIMEOUT_MS) ==
		RD_KAFKA_RESP_ERR_NO_ERROR;
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

void
watch_answer(Question *question)
{
	question->err = rd_kafka_query_watermark_offsets(client.rk, question->topic_name,
													 question->partition,
													 &question->low, &question->high,
													 ANSWER_TIMEOUT_MS);
	question->at_time = -1;
	if (question->err == RD_KAFKA_RESP_ERR_NO_ERROR && question->time >= 0)
		find_time(question);
}

/*
 * The end of the log must be known before: a record that comes between the two
 * questions is found by this one, or lies behind that end.
 */
static void
find_time(Question *question)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_t *asked;

	asked = rd_kafka_topic_partition_list_add(list, question->topic_name, question->partition);
	asked->offset = question->time;
	question->err = rd_kafka_offsets_for_times(client.rk, list, ANSWER_TIMEOUT_MS);
	if (question->err == RD_KAFKA_RESP_ERR_NO_ERROR)
		question->err = asked->err;
	question->at_time = asked->offset >= 0 ? asked->offset : question->high;
	rd_kafka_topic_partition_list_destroy(list);
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
