/*-------------------------------------------------------------------------
 *
 * json_read.c
 *	  Reading JSON that a stranger wrote.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "lib/stringinfo.h"
#include "mb/pg_wchar.h"

#include "json_read.h"

/* So little that the recursion needs no look at the stack's depth */
#define MAX_NESTING		64

#define REPLACEMENT_CHARACTER 0xFFFD

typedef struct JsonText
{
	const char *next;
	const char *end;
} JsonText;

static bool read_value(JsonText *text, int depth, JsonSlice *value);

static bool
at(const JsonText *text, char c)
{
	return text->next < text->end && *text->next == c;
}

static bool
accept(JsonText *text, char c)
{
	if (!at(text, c))
		return false;
	text->next++;
	return true;
}

static void
skip_white_space(JsonText *text)
{
	while (at(text, ' ') || at(text, '\t') || at(text, '\n') || at(text, '\r'))
		text->next++;
}

/* Four hexadecimal digits; -1 if these aren't any */
static int
hex4(const char *digits)
{
	int			value = 0;

	for (int i = 0; i < 4; i++)
	{
		char		c = digits[i];

		if (c >= '0' && c <= '9')
			value = value * 16 + (c - '0');
		else if (c >= 'a' && c <= 'f')
			value = value * 16 + (c - 'a' + 10);
		else if (c >= 'A' && c <= 'F')
			value = value * 16 + (c - 'A' + 10);
		else
			return -1;
	}
	return value;
}

static bool
read_string(JsonText *text)
{
	if (!accept(text, '"'))
		return false;
	while (text->next < text->end)
	{
		unsigned char c = *text->next++;

		if (c == '"')
			return true;
		if (c < ' ')
			return false;
		if (c != '\\')
			continue;
		if (text->next == text->end)
			return false;
		c = *text->next++;
		if (c == 'u')
		{
			if (text->end - text->next < 4 || hex4(text->next) < 0)
				return false;
			text->next += 4;
		}
		else if (c == '\0' || strchr("\"\\/bfnrt", c) == NULL)
			return false;
	}
	return false;
}

static bool
read_digits(JsonText *text)
{
	const char *first = text->next;

	while (text->next < text->end && *text->next >= '0' && *text->next <= '9')
		text->next++;
	return text->next > first;
}

static bool
read_number(JsonText *text)
{
	(void) accept(text, '-');
	if (!accept(text, '0') && !read_digits(text))
		return false;
	if (accept(text, '.') && !read_digits(text))
		return false;
	if (accept(text, 'e') || accept(text, 'E'))
	{
		if (!accept(text, '+'))
			(void) accept(text, '-');
		return read_digits(text);
	}
	return true;
}

static bool
read_word(JsonText *text, const char *word)
{
	int			len = strlen(word);

	if (text->end - text->next < len || memcmp(text->next, word, len) != 0)
		return false;
	text->next += len;
	return true;
}

static bool
read_array(JsonText *text, int depth)
{
	JsonSlice	element;

	text->next++;
	skip_white_space(text);
	if (accept(text, ']'))
		return true;
	do
	{
		if (!read_value(text, depth, &element))
			return false;
	} while (accept(text, ','));
	return accept(text, ']');
}

/* Is a field's name, quotes and escapes and all, the one that is meant? */
static bool
is_named(const JsonSlice *field, const char *name)
{
	char	   *decoded;
	bool		same;

	if (memchr(field->start, '\\', field->len) == NULL)
		return field->len == strlen(name) + 2 &&
			memcmp(field->start + 1, name, field->len - 2) == 0;
	decoded = json_slice_decode(field);
	same = strcmp(decoded, name) == 0;
	pfree(decoded);
	return same;
}

static bool
read_object(JsonText *text, int depth, const char *const *names,
			JsonSlice *values, int nvalues)
{
	text->next++;
	skip_white_space(text);
	if (accept(text, '}'))
		return true;
	do
	{
		JsonSlice	field;
		JsonSlice	value;

		skip_white_space(text);
		field.start = text->next;
		if (!read_string(text))
			return false;
		field.len = text->next - field.start;
		skip_white_space(text);
		if (!accept(text, ':') || !read_value(text, depth, &value))
			return false;
		for (int i = 0; i < nvalues; i++)
		{
			if (is_named(&field, names[i]))
				values[i] = value;
		}
	} while (accept(text, ','));
	return accept(text, '}');
}

/* A value and the white space around it */
static bool
read_value(JsonText *text, int depth, JsonSlice *value)
{
	bool		ok;

	skip_white_space(text);
	if (text->next == text->end || depth >= MAX_NESTING)
		return false;
	value->start = text->next;
	switch (*text->next)
	{
		case '{':
			ok = read_object(text, depth + 1, NULL, NULL, 0);
			break;
		case '[':
			ok = read_array(text, depth + 1);
			break;
		case '"':
			ok = read_string(text);
			break;
		case 't':
			ok = read_word(text, "true");
			break;
		case 'f':
			ok = read_word(text, "false");
			break;
		case 'n':
			ok = read_word(text, "null");
			break;
		default:
			ok = read_number(text);
	}
	value->len = text->next - value->start;
	skip_white_space(text);
	return ok;
}

bool
json_read_object(const char *start, int len, const char *const *names,
				 JsonSlice *values, int nvalues)
{
	JsonText	text = {start, start + len};

	for (int i = 0; i < nvalues; i++)
		values[i].start = NULL;
	skip_white_space(&text);
	if (!at(&text, '{') || !read_object(&text, 1, names, values, nvalues))
		return false;
	skip_white_space(&text);
	return text.next == text.end;
}

bool
json_read_string(const char *start, int len, JsonSlice *value)
{
	JsonText	text = {start, start + len};

	return read_value(&text, 0, value) && json_slice_is_string(value) &&
		text.next == text.end;
}

bool
json_slice_is_string(const JsonSlice *slice)
{
	return slice->start != NULL && slice->start[0] == '"';
}

bool
json_slice_is_null(const JsonSlice *slice)
{
	return slice->start == NULL || slice->start[0] == 'n';
}

static void
append_character(StringInfo out, pg_wchar c)
{
	unsigned char utf8[4];

	unicode_to_utf8(c, utf8);
	appendBinaryStringInfo(out, (char *) utf8, pg_utf_mblen(utf8));
}

/*
 * The character of an escape, whose u is at escape[0]; returns how many bytes
 * of the text it took.
 */
static int
decode_unicode(StringInfo out, const char *escape, const char *end)
{
	int			first = hex4(escape + 1);
	int			second = -1;

	if (first >= 0xD800 && first <= 0xDBFF && end - escape >= 11 &&
		escape[5] == '\\' && escape[6] == 'u')
		second = hex4(escape + 7);
	if (second >= 0xDC00 && second <= 0xDFFF)
	{
		append_character(out, 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00));
		return 11;
	}
	if (first == 0 || (first >= 0xD800 && first <= 0xDFFF))
		first = REPLACEMENT_CHARACTER;
	append_character(out, first);
	return 5;
}

char *
json_slice_decode(const JsonSlice *slice)
{
	static const char letters[] = "bfnrt";
	static const char characters[] = "\b\f\n\r\t";
	const char *next = slice->start + 1;
	const char *end = slice->start + slice->len - 1;
	StringInfoData out;

	initStringInfo(&out);
	while (next < end)
	{
		const char *escape = memchr(next, '\\', end - next);
		const char *letter;

		if (escape == NULL)
			escape = end;
		appendBinaryStringInfo(&out, next, escape - next);
		if (escape == end)
			break;
		next = escape + 1;
		if (*next == 'u')
		{
			next += decode_unicode(&out, next, end);
			continue;
		}
		letter = strchr(letters, *next);
		appendStringInfoChar(&out, letter ? characters[letter - letters] : *next);
		next++;
	}
	return out.data;
}
