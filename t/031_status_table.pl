# The table of a message's statuses: every row of it is driven by what it names
# as the cause, and every other change is refused.
#
#	from        to                  when
#	-           NEW                 captured or sent by the application
#	NEW         SENT                acknowledged by Kafka
#	NEW         DEAD                can never be published, or kills the bridge
#	SENT        CONFIRMED, FAILED   a result
#	SENT        DEAD                no result after the last attempt
#	DEAD        CONFIRMED, FAILED   the result came after all
#	NEW         CONFIRMED, FAILED   a result came though the acknowledgement was lost
#	SENT        NEW                 recovery
#	SENT, DEAD  NEW                 outbox.resend
#
# A trigger writes down every change there is, so that a message's path is known
# and not only where it ended.  What each cause does in detail is elsewhere:
# 012_kafka_errors.pl and 033_poison.pl have what makes a message DEAD,
# 020_results.pl the results, 030_recovery.pl recovery.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Results;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @statuses = qw(NEW SENT CONFIRMED FAILED DEAD);
my %allowed = (
	NEW => [qw(SENT CONFIRMED FAILED DEAD)],
	SENT => [qw(NEW CONFIRMED FAILED DEAD)],
	CONFIRMED => [],
	FAILED => [],
	DEAD => [qw(NEW CONFIRMED FAILED)]);

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap, start => 0);
with_poison(sub { $node->start });
$node->safe_psql('postgres', 'CREATE EXTENSION outbox');
my $test = OutboxTest::Results->new($node, $kafka);

$test->query(<<'EOS');
CREATE TABLE history (n bigint GENERATED ALWAYS AS IDENTITY, old_id uuid, id uuid,
	was text, became text);
CREATE FUNCTION write_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO public.history (old_id, id, was, became)
		VALUES (OLD.id, NEW.id, OLD.status, NEW.status);
	RETURN NULL;
END
$$;
DO $$
DECLARE
	part regclass;
BEGIN
	FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'outbox.log'::regclass
	LOOP
		EXECUTE format('CREATE TRIGGER write_history AFTER UPDATE ON %s
			FOR EACH ROW EXECUTE FUNCTION write_history()', part);
	END LOOP;
END
$$;
EOS

# Wait until a message has gone this way, which it began as NEW: 'SENT DEAD'.
sub went
{
	my ($id, $path, $name) = @_;
	my %label = map { substr($_, 0, 1) => $_ } @statuses;
	my @path = ('N', map { substr($_, 0, 1) } split / /, $path);
	my $expected = join ' ', map { "$path[$_ - 1]>$path[$_]" } 1 .. $#path;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$test->wait_for(<<"EOS", "$label{$path[-1]}|$expected") and pass($name);
SELECT (SELECT status FROM outbox.message WHERE id = '$id'),
	coalesce(string_agg(was || '>' || became, ' ' ORDER BY n), '')
FROM history WHERE id = '$id'
EOS
	return;
}

# The copies in Kafka, all with the message's id
sub copies_are
{
	my ($topic, $id, $n, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(scalar(grep { $_->{header}{id} eq $id } $kafka->consume($topic)), $n, $name);
	return;
}

sub send_one
{
	my ($topic, $payload) = @_;

	return $test->query("SELECT outbox.send('$topic', '" . ($payload // 'm') . "'::text, 'key')");
}

sub answer
{
	my ($results, %values) = @_;

	$kafka->produce($results, map { { key => $_, value => $values{$_} } } sort keys %values);
	return;
}

# ---------- what the table has ----------

subtest '- to NEW: captured or sent' => sub {
	$test->query(
		q(CREATE TABLE orders (id int); SELECT outbox.attach('orders', 'captured')));
	is( $test->query(
			q(INSERT INTO orders VALUES (1); SELECT status FROM outbox.message WHERE topic = 'captured')),
		'NEW', 'captured');
	my $sent = send_one('nowhere');
	went($sent, '', 'sent');
	is($test->query("SELECT attempts, result, error FROM outbox.message WHERE id = '$sent'"),
		'0||', 'nothing has happened to it');
};

subtest 'NEW to SENT: acknowledged by Kafka' => sub {
	my $topic = $test->new_name('plain');
	my $id;

	$kafka->create_topic($topic, 1);
	$kafka->pause;
	$id = send_one($topic);
	went($id, '', 'not before that');
	$kafka->resume;
	went($id, 'SENT', 'then it is SENT');
	copies_are($topic, $id, 1, 'as it is in Kafka');
};

subtest 'NEW to DEAD: can never be published' => sub {
	my $topic = $test->new_name('narrow');
	my $id;

	$kafka->create_topic($topic, 1, 'max.message.bytes' => 1000);
	$id = send_one($topic, 'x' x 5000);
	went($id, 'DEAD', 'too large for its topic');
	like($test->query("SELECT error FROM outbox.message WHERE id = '$id'"),
		qr/MSG_SIZE_TOO_LARGE/, 'the error is kept');
	copies_are($topic, $id, 0, 'it is not in Kafka');

	$kafka->alter_config($topic, 'max.message.bytes' => 10_000);
	$test->query("SELECT outbox.resend('$id')");
	went($id, 'DEAD NEW SENT', 'DEAD to NEW: resent when that is mended');
	copies_are($topic, $id, 1, 'with the same id');
};

subtest 'NEW to DEAD: it kills the bridge' => sub {
	my $topic = $test->new_name('deadly');
	my $id;

	$kafka->create_topic($topic, 1);
	$id = $test->query(
		qq(SELECT outbox.send('$topic', 'm'::text, 'key', '{"poison": "segv"}')));

	# for each of its deaths another message has to go out
	wait_until('it has died often enough',
		sub {
			$test->query("SELECT outbox.send('$topic', 'm'::text, 'another')");
			$test->query("SELECT status FROM outbox.message WHERE id = '$id'") eq 'DEAD';
		});
	went($id, 'DEAD', 'as often as outbox.poison_attempts allows');
	like($test->query("SELECT error FROM outbox.message WHERE id = '$id'"),
		qr/^killed the bridge to Kafka 3 times: terminated by signal 11/, 'the error is kept');
	copies_are($topic, $id, 0, 'it is not in Kafka');
};

subtest 'SENT to CONFIRMED, FAILED: a result' => sub {
	my ($topic, $results) = $test->new_topics();
	my ($confirmed, $failed) = $test->messages($topic, 2);

	answer($results, $confirmed => 'SUCCESS', $failed => 'FAILED');
	went($confirmed, 'SENT CONFIRMED', 'SUCCESS');
	went($failed, 'SENT FAILED', 'FAILED');
};

subtest 'SENT to DEAD: no result; DEAD to CONFIRMED, FAILED: it came after all' => sub {
	my ($topic, $results) =
	  $test->new_topics(rest => q(, result_timeout => '100 ms', max_attempts => 1));
	my ($none, $confirmed, $failed) = map { send_one($topic) } 1 .. 3;

	went($_, 'SENT DEAD', 'the last attempt was in vain') foreach ($none, $confirmed, $failed);
	answer($results, $confirmed => 'SUCCESS', $failed => 'FAILED');
	went($confirmed, 'SENT DEAD CONFIRMED', 'late SUCCESS');
	went($failed, 'SENT DEAD FAILED', 'late FAILED');

	$test->set_topic($topic, $results);
	$test->query("SELECT outbox.resend('$none')");
	went($none, 'SENT DEAD NEW SENT', 'DEAD to NEW: resent');
	copies_are($topic, $none, 2, 'with the same id');
};

subtest 'SENT to NEW: recovery, or resent' => sub {
	my ($topic, $results) = $test->new_topics();
	my ($id) = $test->messages($topic, 1);

	$test->query("SELECT outbox.resend('$id')");
	went($id, 'SENT NEW SENT', 'resent');

	# the time of the third attempt is four times the timeout
	$test->set_topic($topic, $results, q(, result_timeout => '100 ms', max_attempts => 3));
	went($id, 'SENT NEW SENT NEW SENT DEAD', 'recovery, as often as there are attempts');
	copies_are($topic, $id, 3, 'with the same id');
};

# The messages are in Kafka, and a lock that somebody has on the first keeps the
# publisher from marking them SENT.
sub with_lost_acknowledgement
{
	my ($then) = @_;
	my ($topic, $results) = $test->new_topics();
	my @ids;

	set_conf($node, 'outbox.enabled' => 'off');
	$test->wait_for(
		q(SELECT bool_and(state LIKE 'resting%') FROM outbox.worker WHERE kind = 'publisher'), 't');
	@ids = map { send_one($topic) } 1 .. 3;
	$test->query(
		"BEGIN; SELECT FROM outbox.log WHERE id = '$ids[0]' FOR UPDATE; PREPARE TRANSACTION 'lock'");
	set_conf($node, 'outbox.enabled' => 'on');
	$test->wait_for(
		q(SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'
		  AND backend_type LIKE 'outbox publisher%'), 1);
	copies_are($topic, $_, 1, 'it is in Kafka') foreach (@ids);
	went($_, '', 'and NEW') foreach (@ids);
	answer($results, $ids[1] => 'SUCCESS', $ids[2] => 'FAILED');
	$test->counts_are($results, { applied => 2 }, 'results come');
	went($ids[1], 'CONFIRMED', 'SUCCESS');
	went($ids[2], 'FAILED', 'FAILED');
	$then->($topic, @ids);
	return;
}

subtest 'NEW to CONFIRMED, FAILED: the acknowledgement was lost' => sub {
	with_lost_acknowledgement(
		sub {
			my ($topic, @ids) = @_;
			my ($publisher) = split /\n/, $test->query(
				q(SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'
				  AND backend_type LIKE 'outbox publisher%'));

			$test->query("SELECT pg_terminate_backend($publisher)");
			wait_for_exit($publisher);
			$test->query("COMMIT PREPARED 'lock'");
			went($ids[0], 'SENT', 'the one with no result goes out again');
			copies_are($topic, $ids[0], 2, 'with the same id');
			went($ids[1], 'CONFIRMED', 'the others are what they were');
			went($ids[2], 'FAILED', 'the others are what they were');
			copies_are($topic, $_, 1, 'and are not published again') foreach (@ids[ 1, 2 ]);
		});
};

# ---------- what it has not ----------

subtest 'CONFIRMED, FAILED to SENT: the acknowledgement came after the result' => sub {
	with_lost_acknowledgement(
		sub {
			my ($topic, @ids) = @_;

			$test->query("COMMIT PREPARED 'lock'");
			went($ids[0], 'SENT', 'the one with no result is SENT');
			went($ids[1], 'CONFIRMED', 'the others are what they were');
			went($ids[2], 'FAILED', 'the others are what they were');
		});
};

subtest 'CONFIRMED, FAILED to either: a repeated or contrary result' => sub {
	my ($topic, $results) = $test->new_topics();
	my ($confirmed, $failed) = $test->messages($topic, 2);

	answer($results, $confirmed => 'SUCCESS', $failed => 'FAILED');
	$test->counts_are($results, { applied => 2 }, 'the first');
	answer($results, $confirmed => 'FAILED', $failed => 'SUCCESS');
	$test->counts_are($results, { applied => 2, contrary => 2 }, 'the opposite is counted');
	answer($results, $confirmed => 'SUCCESS', $failed => 'FAILED');
	$test->counts_are($results, { applied => 2, contrary => 2, repeated => 2 }, 'the same is counted');
	went($confirmed, 'SENT CONFIRMED', 'no more');
	went($failed, 'SENT FAILED', 'no more');
};

subtest 'CONFIRMED, FAILED to DEAD or NEW: recovery' => sub {
	my ($topic, $results) = $test->new_topics();
	my ($confirmed, $failed, $none) = $test->messages($topic, 3);

	answer($results, $confirmed => 'SUCCESS', $failed => 'FAILED');
	$test->counts_are($results, { applied => 2 }, 'the results');
	$test->set_topic($topic, $results, q(, result_timeout => '100 ms', max_attempts => 2));
	went($none, 'SENT NEW SENT DEAD', 'one had none, and recovery came by');
	went($confirmed, 'SENT CONFIRMED', 'it passed the others');
	went($failed, 'SENT FAILED', 'it passed the others');
};

# One message of each status, as it came to be
sub one_of_each
{
	my ($topic, $results) = $test->new_topics();
	my %id;

	$kafka->alter_config($topic, 'max.message.bytes' => 1000);
	@id{qw(SENT CONFIRMED FAILED)} = $test->messages($topic, 3);
	answer($results, $id{CONFIRMED} => 'SUCCESS', $id{FAILED} => 'FAILED');
	$id{DEAD} = send_one($topic, 'x' x 5000);
	$test->query("SELECT outbox.pause('$topic')");
	$id{NEW} = send_one($topic);
	each_is($_, \%id, 'one of each') foreach (@statuses);
	return ($topic, %id);
}

my %path = (
	NEW => '',
	SENT => 'SENT',
	CONFIRMED => 'SENT CONFIRMED',
	FAILED => 'SENT FAILED',
	DEAD => 'DEAD');

sub each_is
{
	my ($status, $id, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	went($id->{$status}, $path{$status}, "$name: $status");
	return;
}

subtest 'outbox.change_status refuses the rest' => sub {
	my ($topic, %id) = one_of_each();

	foreach my $from (@statuses)
	{
		foreach my $to (@statuses)
		{
			my $may = grep { $_ eq $to } @{ $allowed{$from} };

			is( state_of($node, "BEGIN; SELECT outbox.change_status('$id{$from}', '$from', '$to'); ROLLBACK"),
				$may ? 't' : '22023', "$from to $to");
			next if $from eq $to;
			is( state_of($node, "SELECT outbox.change_status('$id{$to}', '$from', '$to')"),
				$may ? 'f' : '22023', 'it has to be in the status the caller has read');
		}
		is(state_of($node, "SELECT outbox.change_status('$id{$from}', '$from', NULL)"), '22004', 'nor to null');
	}
	each_is($_, \%id, 'unchanged') foreach (@statuses);
	is( state_of($node, "SELECT outbox.change_status('$id{SENT}', 'SENT', 'DEAD', 'why')"), 't',
		'with an error');
	is($test->query("SELECT status, error FROM outbox.message WHERE id = '$id{SENT}'"),
		'DEAD|why', 'which is kept');
};

subtest 'outbox.resend refuses what is NEW or final' => sub {
	my ($topic, %id) = one_of_each();

	is(state_of($node, "SELECT outbox.resend('$id{$_}')"), '55000', $_) foreach (qw(NEW CONFIRMED FAILED));
	each_is($_, \%id, 'unchanged') foreach (@statuses);
	is($test->query("SELECT outbox.resend('$topic', '-infinity', 'infinity')"), 2,
		'of all of a topic two are resent');
	went($id{SENT}, 'SENT NEW', 'SENT');
	went($id{DEAD}, 'DEAD NEW', 'DEAD');
	each_is($_, \%id, 'unchanged') foreach (qw(NEW CONFIRMED FAILED));
	$test->query("SELECT outbox.resume('$topic')");
	went($id{NEW}, 'SENT', 'all go on');
	went($id{SENT}, 'SENT NEW SENT', 'all go on');
	went($id{DEAD}, 'DEAD NEW DEAD', 'all go on');
};

# ---------- all of it ----------

is( $test->query(q(SELECT string_agg(DISTINCT was || '>' || became, ' ') FROM history)),
	join(' ', sort map {
			my $from = $_;
			map { substr($from, 0, 1) . '>' . substr($_, 0, 1) } @{ $allowed{$from} }
		} @statuses),
	'each change that the table has was seen, and no other');
is($test->query('SELECT count(*) FROM history WHERE old_id <> id'), 0, 'always with the same id');

$node->stop;
$kafka->stop;
done_testing();
