
=pod

=head1 NAME

OutboxTest::Subscriptions - what tests of subscriptions share

=head1 SYNOPSIS

  my $test = subscriptions_of($node, $kafka);
  my $topic = new_topic(2);
  subscribe($topic, 'latest');
  produce($topic, 0, 'a', 'b');
  taken($topic, 'a b', 'it is read');

=head1 DESCRIPTION

The handler C<app.take> writes down each call, with no constraint that would hide
a second one, in C<app.taken>; a counter of the partition says in which order.
For a value that begins with C<wait> it fails as if that would pass, and for one
that begins with C<refuse> for good.

=cut

package OutboxTest::Subscriptions;

use strict;
use warnings;

use Exporter 'import';
use OutboxTest::Results;
use PostgreSQL::Test::Utils;
use Test::More;

our @EXPORT = qw(
  subscriptions_of
  query
  new_topic
  subscribe
  produce
  taken
  each_once
  position
  wait_for_position
  subscription_is
  hint
);

my ($node, $kafka, $test);

# Begins with a node, or goes on with another one that has all that the first had.
sub subscriptions_of
{
	($node, $kafka) = @_;
	my $begun = defined $test;

	$test = OutboxTest::Results->new($node, $kafka);
	create_handlers() unless $begun;
	return $test;
}

sub query
{
	my ($sql) = @_;
	return $test->query($sql);
}

sub create_handlers
{
	query(<<'EOS');
CREATE SCHEMA app;
CREATE TABLE app.taken (topic text, partition int, "offset" bigint, payload text,
	n bigint, handler text);
CREATE TABLE app.counter (topic text, partition int, n bigint, PRIMARY KEY (topic, partition));
CREATE FUNCTION app.note(record outbox.record, handler text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	place bigint;
BEGIN
	INSERT INTO app.counter AS c VALUES (record.topic, record.partition, 1)
		ON CONFLICT ON CONSTRAINT counter_pkey DO UPDATE SET n = c.n + 1 RETURNING c.n INTO place;
	INSERT INTO app.taken VALUES (record.topic, record.partition, record."offset",
		record.payload, place, handler);
	IF record.payload LIKE 'wait%' THEN
		RAISE serialization_failure USING MESSAGE = 'not yet';
	ELSIF record.payload LIKE 'refuse%' THEN
		RAISE EXCEPTION 'refused';
	END IF;
END
$$;
CREATE FUNCTION app.take(record outbox.record) RETURNS void LANGUAGE sql
	BEGIN ATOMIC SELECT app.note(record, 'take'); END;
CREATE FUNCTION app.other(record outbox.record) RETURNS void LANGUAGE sql
	BEGIN ATOMIC SELECT app.note(record, 'other'); END;
EOS
	return;
}

sub new_topic
{
	my ($partitions) = @_;
	my $topic = $test->new_name('topic');

	$kafka->create_topic($topic, $partitions // 1);
	return $topic;
}

sub subscribe
{
	my ($topic, $start, $more) = @_;

	$start //= 'earliest';
	query("SELECT outbox.subscribe('$topic', 'app.take(outbox.record)', start => '$start'"
		  . ($more // '') . ')');
	return;
}

# Records of a partition with these values, in one batch
sub produce
{
	my ($topic, $partition, @values) = @_;

	$kafka->produce($topic, map { { partition => $partition, value => $_ } } @values);
	return;
}

# Wait until these values, by partition and in the order they were handled in,
# are all there are.
sub taken
{
	my ($topic, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$test->wait_for(
		"SELECT string_agg(payload, ' ' ORDER BY partition, n) FROM app.taken WHERE topic = '$topic'",
		$expected) and pass($name);
	return;
}

# Every record of the topic was handled once, and in the order of its partition.
sub each_once
{
	my ($topic, $n, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$test->wait_for(
		"SELECT count(DISTINCT (partition, \"offset\")) FROM app.taken WHERE topic = '$topic'", $n);
	is( query(<<"EOS"), "$n|0", $name);
SELECT count(*), count(*) FILTER (WHERE "offset" <= before)
FROM (SELECT *, lag("offset") OVER (PARTITION BY partition ORDER BY n) AS before
	  FROM app.taken WHERE topic = '$topic') AS t
EOS
	return;
}

sub position
{
	my ($topic, $partition) = @_;
	return query('SELECT next_offset FROM outbox.consumer_offset'
		  . " WHERE topic = '$topic' AND kind = 's' AND partition = " . ($partition // 0));
}

sub wait_for_position
{
	my ($topic, $offset) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$test->wait_for('SELECT next_offset FROM outbox.consumer_offset'
		  . " WHERE topic = '$topic' AND kind = 's' AND partition = 0", $offset);
	return;
}

# Wait until the subscription says that
sub subscription_is
{
	my ($topic, $state, $reason, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$test->wait_for("SELECT state, reason FROM outbox.subscription WHERE topic = '$topic'",
		qr/^\Q$state\E\|$reason/) and pass($name);
	return;
}

# What the log's hint says to do about the topic
sub hint
{
	my ($topic) = @_;
	my @hints = slurp_file($node->logfile) =~ /HINT:  To go on behind an offset: (SELECT outbox.skip\('$topic', .*\))\./g;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	isnt(scalar(@hints), 0, 'the log has a hint');
	return $hints[-1];
}

1;
