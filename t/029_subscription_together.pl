# A batch's records share a subtransaction for as long as none of them fails.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Subscriptions;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant RECORDS => 300;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my $test = subscriptions_of($node, $kafka);

# How many transactions and subtransactions wrote down the topic's records.
sub writers
{
	my ($topic) = @_;
	return query("SELECT count(DISTINCT xmin::text) FROM app.taken WHERE topic = '$topic'");
}

sub count_is
{
	my ($topic, $expected, $name) = @_;

	$test->wait_for("SELECT count(*) FROM app.taken WHERE topic = '$topic'", $expected) and pass($name);
	is(query("SELECT count(DISTINCT \"offset\") FROM app.taken WHERE topic = '$topic'"),
		$expected, 'each of them once');
	is(query("SELECT count(*) FROM (SELECT \"offset\" - lag(\"offset\") OVER (ORDER BY n) AS step
			FROM app.taken WHERE topic = '$topic') AS s WHERE step < 1"), 0, 'in order');
	return;
}

# A batch waits in Kafka until the subscription is there.
subtest 'none fails' => sub {
	my $topic = new_topic();

	produce($topic, 0, map { "v$_" } 1 .. RECORDS);
	subscribe($topic);
	count_is($topic, RECORDS, 'all are handled');
	cmp_ok(writers($topic), '<', RECORDS / 4, 'many of them in one subtransaction');
};

# What the others did before and after it stays, the failed one's doesn't, and
# the next ones are isolated from each other.
subtest 'one fails for good' => sub {
	my $topic = new_topic();
	my @values = map { "v$_" } 1 .. RECORDS;

	$values[RECORDS / 2] = 'refuse';
	produce($topic, 0, @values);
	subscribe($topic);
	count_is($topic, RECORDS - 1, 'all the others are handled');
	is(query("SELECT records_dead FROM outbox.subscription WHERE topic = '$topic'"), 1,
		'the one is dead');
	is(query("SELECT records_handled FROM outbox.subscription WHERE topic = '$topic'"),
		RECORDS - 1, 'and counted once, as they are');

	my $before = writers($topic);
	produce($topic, 0, map { "w$_" } 1 .. RECORDS);
	count_is($topic, 2 * RECORDS - 1, 'as are those that follow');
	cmp_ok(writers($topic) - $before, '<', RECORDS, 'which go together again in the end');
};

# A copy in the same batch as its original is answered, not handled.
subtest 'copies' => sub {
	my $topic = new_topic();
	my $id = '0195c0de-0000-7000-8000-000000000042';

	$kafka->produce($topic, map { { value => $_, headers => [ [ 'id', $id ] ] } } qw(one two three));
	$kafka->produce($topic, { value => 'four' });
	subscribe($topic);
	taken($topic, 'one four', 'the first of them counts');
	is(query("SELECT records_repeated FROM outbox.subscription WHERE topic = '$topic'"), 2,
		'the others are copies');
};

# What a handler leaves to the end of the transaction, by what the value says: a
# trigger that raises, for good or until app.ready has a row, or a constraint that
# is checked then.
query(<<'EOS');
CREATE TABLE app.ready (since timestamptz);
CREATE TABLE app.promise (topic text, payload text, role name DEFAULT current_user);
CREATE TABLE app.consequence (topic text, payload text, role name DEFAULT current_user);
CREATE TABLE app.single (topic text, name text, UNIQUE (topic, name) DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION app.keep() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO app.consequence VALUES (NEW.topic, NEW.payload);
	IF NEW.payload = 'end waits' AND NOT EXISTS (SELECT FROM app.ready) THEN
		RAISE serialization_failure USING MESSAGE = 'not yet, at the end';
	ELSIF NEW.payload = 'end refuses' THEN
		RAISE EXCEPTION 'refused at the end';
	END IF;
	RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER keep AFTER INSERT ON app.promise DEFERRABLE INITIALLY DEFERRED
	FOR EACH ROW EXECUTE FUNCTION app.keep();
CREATE FUNCTION app.leave(record outbox.record) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM app.note(record, 'leave');
	INSERT INTO app.promise VALUES (record.topic, record.payload);
	INSERT INTO app.single VALUES (record.topic,
		CASE WHEN record.payload LIKE 'once%' THEN 'once' ELSE record.payload END);
END
$$;
EOS

# How long the batches were that had to be handled again
sub broken_batches
{
	my ($since) = @_;
	return slurp_file($node->logfile, $since) =~ /a batch of (\d+) records is handled again, each alone/g;
}

# Each of these, and no other, has taken effect: in the call, at the end, and
# in the other side's eyes
sub effects_are
{
	my ($topic, $replies, @values) = @_;
	my $expected = join(' ', sort @values);

	foreach my $table (qw(taken promise consequence))
	{
		is( query("SELECT string_agg(payload, ' ' ORDER BY payload COLLATE \"C\") FROM app.$table"
				. " WHERE topic = '$topic'"), $expected, "each of them once in app.$table");
	}
	is(query("SELECT count(*) FROM app.single WHERE topic = '$topic'"), scalar(@values),
		'and where a constraint is checked at the end');
	is( query("SELECT DISTINCT outbox.payload_text(payload) FROM outbox.log WHERE topic = '$replies'"
			. " AND outbox.payload_text(payload) NOT LIKE '%\"error\"%'"), 'SUCCESS', 'the others failed');
	is(query("SELECT count(*) FROM outbox.message WHERE topic = '$replies' AND payload = 'SUCCESS'"),
		scalar(@values), 'one reply for each');
	return;
}

sub subscribe_with_replies
{
	my ($topic) = @_;
	my $replies = new_topic();

	query("SELECT outbox.subscribe('$topic', 'app.leave(outbox.record)', '$replies')");
	return $replies;
}

# Records with an id, so that they are answered
sub produce_with_ids
{
	my ($topic, @values) = @_;
	my @ids = split /\n/, query('SELECT gen_random_uuid() FROM generate_series(1, ' . @values . ')');

	$kafka->produce($topic, map { { value => $values[$_], headers => [ [ 'id', $ids[$_] ] ] } } 0 .. $#values);
	return;
}

# All the calls go well, and are undone all the same.
subtest 'the end of the batch fails for good' => sub {
	my $topic = new_topic();
	my @values = map { "v$_" } 1 .. RECORDS;
	my $since = -s $node->logfile;

	@values[ 20, 140 ] = ('end refuses', 'once more');
	@values[ 7, 260 ] = ('once', 'end refuses');
	produce_with_ids($topic, @values);
	my $replies = subscribe_with_replies($topic);
	wait_for_position($topic, RECORDS);
	is( query('SELECT records_handled, records_failed, records_dead FROM outbox.subscription'
			. " WHERE topic = '$topic'"), (RECORDS - 3) . '|3|0', 'they are counted once');
	effects_are($topic, $replies, grep { !/end|more/ } @values);
	is(query("SELECT count(*) FROM outbox.message WHERE topic = '$replies'"), RECORDS,
		'the bad ones are answered, too');
	is( query("SELECT string_agg(s, ' ' ORDER BY s) FROM (SELECT payload::jsonb ->> 'sqlstate' AS s"
			. " FROM outbox.message WHERE topic = '$replies' AND payload <> 'SUCCESS') AS t"),
		'23505 P0001 P0001', 'with what the end of their own transaction said');
	count_is($topic, RECORDS - 3, 'the others');

	my @lengths = broken_batches($since);
	cmp_ok($lengths[0] // 0, '>', 20, "batches that were handled again: @lengths");
	my $before = writers($topic);
	produce($topic, 0, map { "w$_" } 1 .. RECORDS);
	count_is($topic, 2 * RECORDS - 3, 'those that follow');
	cmp_ok(writers($topic) - $before, '<', RECORDS / 4, 'which go together again');
};

# What is behind the one in its partition waits with it, what is before it doesn't.
subtest 'the end of the batch fails for now' => sub {
	my $topic = new_topic(2);
	my @values = map { "v$_" } 1 .. RECORDS;
	my $reason = 'not yet, at the end';

	$values[30] = 'end waits';
	produce($topic, 0, @values);
	produce($topic, 1, map { "w$_" } 1 .. RECORDS);
	query("SELECT outbox.subscribe('$topic', 'app.leave(outbox.record)', max_attempts => 1000000)");
	subscription_is($topic, 'retrying', qr/.*\Q$reason\E/, 'one is tried again');
	$test->wait_for("SELECT count(*) FROM app.consequence WHERE topic = '$topic'", 30 + RECORDS);
	is( query("SELECT count(*), count(DISTINCT payload) FROM app.taken WHERE topic = '$topic'"),
		join('|', (30 + RECORDS) x 2), 'all others of the batch are done, once');
	query('INSERT INTO app.ready VALUES (now())');
	each_once($topic, 2 * RECORDS, 'it goes on in order when that has passed');
	is( query("SELECT count(*), count(DISTINCT payload), min(role::text) = current_user, max(role::text) = current_user"
			. " FROM app.consequence WHERE topic = '$topic'"), join('|', (2 * RECORDS) x 2) . '|t|t',
		'each effect of the end is there once, too');
	is( query('SELECT records_handled, records_failed, records_dead FROM outbox.subscription'
			. " WHERE topic = '$topic'"), (2 * RECORDS) . '|0|0', 'and it is counted once');
};

$node->stop;
$kafka->stop;
done_testing();
