/*-------------------------------------------------------------------------
 *
 * record.c
 *	  Records as they come in a PRODUCE frame, and lists of those that wait.
 *
 *-------------------------------------------------------------------------
 */
#include <stdlib.h>
#include <string.h>

#include "client.h"

static size_t bytes_waiting;	/* in all lists */

/* Reads one record, leaving the frame behind it */
void
record_read(FrameReader *frame, Record *record)
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

/* librdkafka's headers, NULL if there are none */
rd_kafka_headers_t *
record_headers(const Record *record)
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

/* Adds a record, as it came, to the end of a list */
void
waiting_add(WaitingList *list, const unsigned char *item, size_t len)
{
	Waiting    *waiting = xalloc(sizeof(Waiting) + len);

	waiting->len = len;
	memcpy(waiting->item, item, len);
	if (list->first == NULL)
		list->last = &list->first;
	*list->last = waiting;
	list->last = &waiting->next;
	bytes_waiting += len;
}

/* Takes the first record off a list; the caller frees it */
Waiting *
waiting_take(WaitingList *list)
{
	Waiting    *waiting = list->first;

	if (waiting == NULL)
		return NULL;
	list->first = waiting->next;
	bytes_waiting -= waiting->len;
	return waiting;
}

/* Moves all of a list to the end of another */
void
waiting_move(WaitingList *list, WaitingList *to)
{
	if (list->first == NULL)
		return;
	if (to->first == NULL)
		to->last = &to->first;
	*to->last = list->first;
	to->last = list->last;
	list->first = NULL;
}

/* Moves all of a list in front of another */
void
waiting_move_first(WaitingList *list, WaitingList *to)
{
	if (list->first == NULL)
		return;
	if (to->first == NULL)
		to->last = list->last;
	*list->last = to->first;
	to->first = list->first;
	list->first = NULL;
}

/* What all lists hold */
size_t
waiting_bytes(void)
{
	return bytes_waiting;
}
