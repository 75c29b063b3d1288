/*-------------------------------------------------------------------------
 *
 * question.h
 *	  A question that librdkafka answers only by blocking, on its way through
 *	  a thread of helper.c.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_QUESTION_H
#define OUTBOX_QUESTION_H

#include "client.h"

/* So many questions for watermarks are asked at a time */
#define QUESTIONS_TOGETHER	256

typedef struct Question
{
	struct Question *next;
	Topic	   *topic;			/* metadata; NULL: are the brokers there? */
	MetadataAnswer metadata;
	int			nleaders;
	LedPartition leaders[LEADERS_TRIED];
	bool		watch;			/* watermarks */
	uint32_t	tag;
	char	   *topic_name;
	int32_t		partition;
	int32_t		leader;			/* -1: not known */
	int64_t		time;			/* -1: not asked */
	int64_t		low;
	int64_t		high;
	int64_t		at_time;
	rd_kafka_resp_err_t err;
} Question;

typedef struct QuestionList
{
	Question   *first;
	Question  **last;
} QuestionList;

/*---- helper.c ----*/

/* A list is its user's to lock.  question_take: NULL if there is none */
extern void question_append(QuestionList *list, Question *question);
extern Question *question_take(QuestionList *list);

/*---- watch.c ----*/

/*
 * Moves those to the other list that could be answered at once, or can't be as
 * their leader keeps silent; blocks.  All are of one leader.
 */
extern void watch_answer_together(QuestionList *questions, QuestionList *answered);

/* Answers one of them; blocks */
extern void watch_answer(Question *question);

/*
 * Where a partition's log has its first record at or after a time, or begins
 * or ends (RD_KAFKA_OFFSET_*).  Blocks for the timeout at most, which
 * rd_kafka_query_watermark_offsets heeds in no librdkafka before 2.3.
 */
extern rd_kafka_resp_err_t watch_find(const char *topic, int32_t partition, int64_t time,
									  int timeout_ms, int64_t *offset);

/* Tells the worker */
extern void watch_report(const Question *question);

#endif							/* OUTBOX_QUESTION_H */
