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

/* Moves those to the other list that could be answered at once; blocks */
extern void watch_answer_together(QuestionList *questions, QuestionList *answered);

/* Answers one of them; blocks */
extern void watch_answer(Question *question);

/* Tells the worker */
extern void watch_report(const Question *question);

#endif							/* OUTBOX_QUESTION_H */
