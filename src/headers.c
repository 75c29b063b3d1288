/*-------------------------------------------------------------------------
 *
 * headers.c
 *	  The headers that an application gives a message.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"

#include "capture.h"
#include "compat.h"

static void check_name(const char *name, int len);
static void check_value(JsonbIteratorToken token, JsonbValue *value, const char *name, int len);
static void push_string(JsonbParseState **state, JsonbIteratorToken token, const char *string);

static void
check_name(const char *name, int len)
{
	if ((len == 2 && memcmp(name, "id", 2) == 0) ||
		(len >= 6 && memcmp(name, "kafka_", 6) == 0))
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("header name \"%.*s\" is reserved", len, name),
				 errdetail("\"id\" and names that begin with \"kafka_\" are written by the extension.")));
}

/* Is this a header's value, or an element of one that is an array? */
static void
check_value(JsonbIteratorToken token, JsonbValue *value, const char *name, int len)
{
	if (token != WJB_VALUE && token != WJB_ELEM)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value of header \"%.*s\"", len, name),
				 errdetail("A header is a string, a number, a boolean or null, or an array of these.")));
}

void
headers_check(Jsonb *headers)
{
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbValue	value;

	if (!JB_ROOT_IS_OBJECT(headers))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("headers must be a JSON object")));

	iterator = JsonbIteratorInit(&headers->root);
	(void) JsonbIteratorNext(&iterator, &value, false); /* WJB_BEGIN_OBJECT */
	while ((token = JsonbIteratorNext(&iterator, &value, false)) == WJB_KEY)
	{
		const char *name = value.val.string.val;
		int			len = value.val.string.len;

		check_name(name, len);
		token = JsonbIteratorNext(&iterator, &value, false);
		if (token != WJB_BEGIN_ARRAY)
			check_value(token, &value, name, len);
		else
		{
			while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_END_ARRAY)
				check_value(token, &value, name, len);
		}
	}
	Assert(token == WJB_END_OBJECT);
}

bool
headers_have_op(Jsonb *headers)
{
	JsonbValue	value;

	return getKeyJsonValueFromContainer(&headers->root, "op", 2, &value) != NULL;
}

static void
push_string(JsonbParseState **state, JsonbIteratorToken token, const char *string)
{
	JsonbValue	value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, string);
	value.val.string.len = strlen(string);
	pushJsonbValue(state, token, &value);
}

/* ---------------------------------------------------------------------
 * Headers of our own
 * --------------------------------------------------------------------- */

struct HeadersWriter
{
	JsonbParseState *state;
};

HeadersWriter *
headers_begin(void)
{
	HeadersWriter *writer = palloc0(sizeof(HeadersWriter));

	pushJsonbValue(&writer->state, WJB_BEGIN_OBJECT, NULL);
	return writer;
}

void
headers_add_text(HeadersWriter *writer, const char *name, const char *text)
{
	push_string(&writer->state, WJB_KEY, name);
	push_string(&writer->state, WJB_VALUE, text);
}

void
headers_push_bytes(JsonbParseState **state, const char *bytes, int len)
{
	char	   *hex = palloc((Size) len * 2 + 1);

	hex[hex_encode(bytes, len, hex)] = '\0';
	pushJsonbValue(state, WJB_BEGIN_OBJECT, NULL);
	push_string(state, WJB_KEY, "hex");
	push_string(state, WJB_VALUE, hex);
	pushJsonbValue(state, WJB_END_OBJECT, NULL);
}

void
headers_add_bytes(HeadersWriter *writer, const char *name, const char *bytes, int len)
{
	push_string(&writer->state, WJB_KEY, name);
	headers_push_bytes(&writer->state, bytes, len);
}

Jsonb *
headers_end(HeadersWriter *writer)
{
	return JsonbValueToJsonb(pushJsonbValue(&writer->state, WJB_END_OBJECT, NULL));
}

Jsonb *
headers_empty(void)
{
	return headers_end(headers_begin());
}
