/*-------------------------------------------------------------------------
 *
 * capture.h
 *	  Writing messages into the log, in the application's transaction.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_CAPTURE_H
#define OUTBOX_CAPTURE_H

#include "executor/tuptable.h"
#include "datatype/timestamp.h"
#include "lib/stringinfo.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/* A message on its way into the log */
typedef struct NewMessage
{
	const char *topic;			/* a valid name */
	int			topic_len;
	const char *key;			/* in the database's encoding, NULL for none */
	int			key_len;
	bytea	   *payload;		/* NULL for a tombstone */
	char		op;				/* of a captured row: c, u or d; else 0 */
	Jsonb	   *headers;		/* checked; NULL for none */
	TimestampTz deliver_at;		/* not before; 0: at once */
} NewMessage;

/*
 * Appends a message to the log: announces the transaction, takes an id and
 * inserts directly with the table and index access methods.  The caller has
 * checked that the topic may be written.  Raises program_limit_exceeded over
 * outbox.max_message_bytes.  Holds RowExclusiveLock on the segment until the
 * end of the transaction.
 */
extern void log_append(const NewMessage *message, pg_uuid_t *id);

/* log_append.c: forgets what it remembers of the log's relations */
extern void log_append_init(void);

/* topic.c */

/* NULL if Kafka takes it as a topic's name, else what is wrong with it */
extern const char *topic_name_problem(const char *topic, int len);

/* Raises invalid_name unless Kafka takes it as a topic's name */
extern void topic_name_check(const char *topic);

/* May the role send to the topic?  Remembered while the grants don't change. */
extern bool topic_may_send(const char *topic, Oid role);

/* May it subscribe to the topic? */
extern bool topic_may_subscribe(const char *topic, Oid role);

/* Raises insufficient_privilege unless it may send */
extern void topic_check_send(const char *topic, Oid role);

/* An errhint for ereport, that tells how to let the role send */
extern int	topic_grant_hint(const char *topic, const char *role);

/* Changes when what topic_may_send said may be wrong */
extern uint64 topic_grants_generation;

/* Registers the invalidation callbacks of the grants; from _PG_init */
extern void topic_grants_init(void);

/* headers.c */

/* Raises unless headers is an object of flat values without reserved names */
extern void headers_check(Jsonb *headers);

/* Is there one named op, which captured messages have of their own? */
extern bool headers_have_op(Jsonb *headers);

/* An object without a field */
extern Jsonb *headers_empty(void);

/*
 * Headers of the extension's own messages, whose names may be reserved ones.
 * Bytes that are no text are kept as an object of one field, "hex"; no
 * application can write that, since headers_check refuses objects.
 */
typedef struct HeadersWriter HeadersWriter;

extern HeadersWriter *headers_begin(void);
extern void headers_add_text(HeadersWriter *writer, const char *name, const char *text);
extern void headers_add_bytes(HeadersWriter *writer, const char *name,
							  const char *bytes, int len);
extern Jsonb *headers_end(HeadersWriter *writer);

/* Such an object, as the value of the field that was begun */
extern void headers_push_bytes(JsonbParseState **state, const char *bytes, int len);

/* payload.c */

/* The bytes as text if they are UTF-8 that this database can show, else NULL */
extern text *payload_text(const char *bytes, int len);

/*
 * A UTF-8 text in the database's encoding; what that has no character for
 * becomes a question mark.
 */
extern char *text_to_database(const char *utf8);

/* json.c */

/* How to write the rows of a table as JSON */
typedef struct JsonRowWriter JsonRowWriter;

/*
 * attnums and names (ncolumns of them) choose and name the columns.  The writer
 * lives in context.
 */
extern JsonRowWriter *json_row_writer(TupleDesc desc, int ncolumns,
									  const AttrNumber *attnums, char *const *names,
									  bool numbers_as_text, MemoryContext context);

/*
 * The row as JSON in UTF-8, in the shape of row_to_json, written as under
 * TimeZone UTC, ISO dates, hex bytea and shortest floats, whatever the
 * session's settings.
 */
extern bytea *json_row(JsonRowWriter *writer, TupleTableSlot *slot);

/* Appends a string of len bytes as a JSON string, in the same encoding */
extern void json_append_string(StringInfo out, const char *text, int len);

#endif							/* OUTBOX_CAPTURE_H */
