/*-------------------------------------------------------------------------
 *
 * json_read.h
 *	  Reading JSON that a stranger wrote.
 *
 * PostgreSQL's own parser raises an ERROR for deep nesting and, in databases
 * that aren't UTF-8, for escapes they have no character for; and its interface
 * changes with every other version.  This one reads UTF-8, never raises, and
 * knows only what results need of it: two fields of an object.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_JSON_READ_H
#define OUTBOX_JSON_READ_H

/* A value within the text that was read; start is NULL if there is none */
typedef struct JsonSlice
{
	const char *start;
	int			len;
} JsonSlice;

/*
 * Reads a text that is one object and nothing else, and finds the values of
 * some of its fields; of a field that comes more than once, the last one.
 * False if it is no well-formed object, or nested deeper than 64.  The text
 * must be valid UTF-8.
 */
extern bool json_read_object(const char *text, int len, const char *const *names,
							 JsonSlice *values, int nvalues);

/* True if the text is one string and nothing else; value gets the string */
extern bool json_read_string(const char *text, int len, JsonSlice *value);

extern bool json_slice_is_string(const JsonSlice *slice);
extern bool json_slice_is_null(const JsonSlice *slice);

/*
 * The characters of a string, in UTF-8, palloc'd, terminated.  What no text
 * can hold, half a surrogate pair or the character zero, becomes U+FFFD: an
 * error message that was cut in the middle of a character still says enough.
 */
extern char *json_slice_decode(const JsonSlice *slice);

#endif							/* OUTBOX_JSON_READ_H */
