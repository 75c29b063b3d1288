/*-------------------------------------------------------------------------
 *
 * reading_tag.c
 *	  Whose a tag is that comes back from the bridge.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "utils/hsearch.h"

#include "reading_tag.h"

typedef struct TagEntry
{
	uint32		tag;			/* must be first */
	Partition  *owner;
} TagEntry;

static HTAB *tags = NULL;

uint32
reading_tag_new(Partition *owner)
{
	static uint32 last_tag = 0;
	TagEntry   *entry;
	bool		found;

	if (tags == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = sizeof(uint32);
		ctl.entrysize = sizeof(TagEntry);
		tags = hash_create("outbox readings", 64, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	do
	{
		if (++last_tag == 0)
			last_tag = 1;
		entry = hash_search(tags, &last_tag, HASH_ENTER, &found);
	} while (found);
	entry->owner = owner;
	return last_tag;
}

void
reading_tag_drop(uint32 *tag)
{
	if (*tag != 0)
		(void) hash_search(tags, tag, HASH_REMOVE, NULL);
	*tag = 0;
}

Partition *
reading_tag_owner(uint32 tag)
{
	TagEntry   *entry = tags == NULL ? NULL : hash_search(tags, &tag, HASH_FIND, NULL);

	return entry ? entry->owner : NULL;
}
