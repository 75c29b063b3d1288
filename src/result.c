/*-------------------------------------------------------------------------
 *
 * result.c
 *	  Understanding a result: which message it is about, and what it says.
 *
 * Anybody who may write to the topic may have written it, so nothing is taken
 * for granted and nothing raises an ERROR.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "mb/pg_wchar.h"

#include "json_read.h"
#include "result.h"
#include "text_output.h"

/* Longer texts are cut in outbox.log: they are for people to read */
#define RESULT_TEXT_MAX		10240

#define HEADER_ID			"reply_to_message_id"
#define HEADER_CORRELATION	"kafka_correlationId"

static bool find_id(const BridgeRecord *record, pg_uuid_t *id);
static bool find_id_in_header(const BridgeRecord *record, const char *name,
							  bool binary, pg_uuid_t *id);
static const char *parse_value(const char *text, int len, MessageResult *result);
static const char *parse_object(const char *text, int len, MessageResult *result);
static bool parse_status(const char *text, int len, MessageResult *result);
static bool parse_status_string(const JsonSlice *string, MessageResult *result);
static const char *shorten(const char *text, int len);
static void trim(const char **text, int *len);

const char *
result_parse(const BridgeRecord *record, MessageResult *result)
{
	const char *problem;

	result->error = NULL;
	if (!find_id(record, &result->id))
		return "it names no message: neither the headers " HEADER_ID " and "
			HEADER_CORRELATION " nor the key are a UUID";
	if (record->value == NULL)
		return "its value is null";
	if (!pg_verify_mbstr(PG_UTF8, record->value, record->value_len, true))
		return "its value is not valid UTF-8";

	problem = parse_value(record->value, record->value_len, result);
	if (problem == NULL)
		result->value = shorten(record->value, record->value_len);
	return problem;
}

/* A plain word, a JSON string or a JSON object */
static const char *
parse_value(const char *text, int len, MessageResult *result)
{
	JsonSlice	string;
	bool		known;

	trim(&text, &len);
	if (len > 0 && text[0] == '{')
		return parse_object(text, len, result);
	if (json_read_string(text, len, &string))
		known = parse_status_string(&string, result);
	else
		known = parse_status(text, len, result);
	return known ? NULL : "its value is neither SUCCESS nor FAILED nor a JSON object";
}

/* The first of the places for it that holds a UUID */
static bool
find_id(const BridgeRecord *record, pg_uuid_t *id)
{
	return find_id_in_header(record, HEADER_ID, false, id) ||
		find_id_in_header(record, HEADER_CORRELATION, true, id) ||
		uuid_parse(record->key, record->key_len, id);
}

static bool
find_id_in_header(const BridgeRecord *record, const char *name, bool binary,
				  pg_uuid_t *id)
{
	for (int i = 0; i < record->nheaders; i++)
	{
		const BridgeHeader *header = &record->headers[i];

		if (strcmp(header->name, name) != 0 || header->value == NULL)
			continue;
		if (binary && header->len == UUID_LEN)
		{
			memcpy(id->data, header->value, UUID_LEN);
			return true;
		}
		if (uuid_parse(header->value, header->len, id))
			return true;
	}
	return false;
}

static int
hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

bool
uuid_parse(const char *text, int len, pg_uuid_t *uuid)
{
	int			place = 0;

	if (text == NULL)
		return false;
	trim(&text, &len);
	if (len == UUID_TEXT_LEN + 2 && text[0] == '"' && text[len - 1] == '"')
	{
		text++;
		len -= 2;
	}
	if (len != UUID_TEXT_LEN)
		return false;

	for (int i = 0; i < UUID_LEN; i++)
	{
		int			high;
		int			low;

		if (place == 8 || place == 13 || place == 18 || place == 23)
		{
			if (text[place++] != '-')
				return false;
		}
		high = hex_digit(text[place]);
		low = hex_digit(text[place + 1]);
		if (high < 0 || low < 0)
			return false;
		uuid->data[i] = high << 4 | low;
		place += 2;
	}
	return true;
}

/* {"status": "SUCCESS" | "FAILED", "error": anything, ...} */
static const char *
parse_object(const char *text, int len, MessageResult *result)
{
	static const char *const names[] = {"status", "error"};
	JsonSlice	values[lengthof(names)];
	const JsonSlice *status = &values[0];
	const JsonSlice *error = &values[1];

	if (!json_read_object(text, len, names, values, lengthof(names)))
		return "its value is not well-formed JSON, or nested too deeply";
	if (!json_slice_is_string(status))
		return "the JSON object has no status that is a string";
	if (!parse_status_string(status, result))
		return "the status in the JSON object is neither SUCCESS nor FAILED";

	if (result->outcome == STATUS_FAILED && json_slice_is_string(error))
	{
		char	   *decoded = json_slice_decode(error);

		result->error = shorten(decoded, strlen(decoded));
		pfree(decoded);
	}
	else if (result->outcome == STATUS_FAILED && !json_slice_is_null(error))
		result->error = shorten(error->start, error->len);
	return NULL;
}

static bool
parse_status(const char *text, int len, MessageResult *result)
{
	trim(&text, &len);
	if (len == 7 && memcmp(text, "SUCCESS", 7) == 0)
		result->outcome = STATUS_CONFIRMED;
	else if (len == 6 && memcmp(text, "FAILED", 6) == 0)
		result->outcome = STATUS_FAILED;
	else
		return false;
	return true;
}

static bool
parse_status_string(const JsonSlice *string, MessageResult *result)
{
	char	   *decoded = json_slice_decode(string);
	bool		known = parse_status(decoded, strlen(decoded), result);

	pfree(decoded);
	return known;
}

/* A copy, cut between two characters if it is too long, saying so */
static const char *
shorten(const char *text, int len)
{
	if (len <= RESULT_TEXT_MAX)
		return pnstrdup(text, len);
	return psprintf("%.*s... (%d bytes in all)",
					pg_encoding_mbcliplen(PG_UTF8, text, len, RESULT_TEXT_MAX),
					text, len);
}

static void
trim(const char **text, int *len)
{
	static const char white[] = " \t\n\v\f\r";

	while (*len > 0 && memchr(white, (*text)[0], sizeof(white) - 1) != NULL)
	{
		(*text)++;
		(*len)--;
	}
	while (*len > 0 && memchr(white, (*text)[*len - 1], sizeof(white) - 1) != NULL)
		(*len)--;
}
