/*-------------------------------------------------------------------------
 *
 * reading_tag.h
 *	  Whose a tag is that comes back from the bridge.
 *
 * Everything that is asked about a partition gets a tag of its own, and loses
 * it when it ends: an answer that comes too late is then nobody's.
 *
 *-------------------------------------------------------------------------
 */
#ifndef OUTBOX_READING_TAG_H
#define OUTBOX_READING_TAG_H

typedef struct Partition Partition;

/* A tag that nobody has; never 0 */
extern uint32 reading_tag_new(Partition *owner);

/* Sets the tag to 0, which is none */
extern void reading_tag_drop(uint32 *tag);

/* NULL if it is nobody's */
extern Partition *reading_tag_owner(uint32 tag);

#endif							/* OUTBOX_READING_TAG_H */
