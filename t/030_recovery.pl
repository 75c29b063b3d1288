# Recovery: what has no result is published again, with the same id, and what
# a crash has left is published.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my $number = 0;

# A topic on the broker, nobody else's, and its result topic if it is to have
# one: new_topic("result_timeout => '1 s'")
sub new_topic
{
	my ($settings) = @_;
	my $topic = 'topic-' . $number++;

	$kafka->create_topic($topic, 1);
	if (defined $settings)
	{
		$kafka->create_topic("$topic-results", 1);
		set_topic($topic, $settings);
	}
	return $topic;
}

sub set_topic
{
	my ($topic, $settings) = @_;

	$node->safe_psql('postgres',
		"SELECT outbox.set_topic('$topic', '$topic-results', $settings)");
	return;
}

# Messages of a topic; returns their ids
sub send_messages
{
	my ($topic, $n) = @_;
	return split /\n/, $node->safe_psql('postgres',
		"SELECT outbox.send('$topic', 'm'::text) FROM generate_series(1, $n)");
}

sub message_is
{
	my ($id, $columns, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_value($node, 'postgres',
		"SELECT $columns FROM outbox.message WHERE id = '$id'", $expected)
	  and pass($name);
	return;
}

sub answer
{
	my ($topic, $id, $value) = @_;

	$kafka->produce("$topic-results", { key => $id, value => $value });
	return;
}

subtest 'published again' => sub {
	my $topic = new_topic(q(result_timeout => '400 ms', max_attempts => 3));
	my ($id) = send_messages($topic, 1);

	message_is($id, 'status, attempts', 'DEAD|3', 'as often as max_attempts says');
	is( $node->safe_psql('postgres', "SELECT error FROM outbox.message WHERE id = '$id'"),
		'no result after 3 attempts; what became of it is unknown', 'and why it is DEAD');
	my @copies = $kafka->consume($topic);
	is(join(' ', map { $_->{header}{id} } @copies), "$id $id $id", 'each copy has its id');
	is(join(' ', map { $_->{key} } @copies), "$id $id $id", 'and key');

	# From below only: a busy machine may take any time.
	my @at = map { $_->{timestamp} } @copies;
	push @at, $node->safe_psql('postgres',
		"SELECT floor(extract(epoch FROM updated_at) * 1000) FROM outbox.message WHERE id = '$id'");
	foreach my $attempt (1 .. 3)
	{
		my $took = $at[$attempt] - $at[ $attempt - 1 ];
		my $least = 400 * 2**($attempt - 1);

		cmp_ok($took, '>=', $least, "attempt $attempt had its time, twice the last one's: $took ms");
	}
	is( $node->safe_psql('postgres', 'SELECT published, republished, dead FROM outbox.stat'),
		'3|2|1', 'outbox.stat counts it');
	answer($topic, $id, 'SUCCESS');
	message_is($id, 'status, error', 'CONFIRMED|', 'a result that is late counts');
};

subtest 'for ever' => sub {
	my $fast = new_topic(q(result_timeout => '200 ms'));
	my $slow = new_topic(q(result_timeout => '1 hour'));
	my ($patient) = send_messages($slow, 1);
	my ($id) = send_messages($fast, 1);

	message_is($id, 'attempts >= 4', 't', 'without max_attempts there is no end');
	answer($fast, $id, 'FAILED');
	message_is($id, 'status', 'FAILED', 'but the result');
	my $attempts = $node->safe_psql('postgres',
		"SELECT attempts FROM outbox.message WHERE id = '$id'");
	wait_for_value($node, 'postgres', "SELECT count(*) FROM outbox.delayed WHERE id = '$id'", '0')
	  and pass('nothing is due after that');
	is(scalar($kafka->consume($fast)), $attempts, 'attempts counts the copies');
	message_is($patient, 'status, attempts', 'SENT|1', 'a topic with a longer timeout has its own');
	is( $node->safe_psql('postgres', q(SELECT count(*) FROM outbox.recovery
			WHERE result_timeout IN (200000, 3600000000))),
		'2', 'and its own cursor');

	# a shorter one counts at once, a longer one, too
	set_topic($slow, q(result_timeout => '200 ms'));
	message_is($patient, 'attempts > 1', 't', 'a shorter timeout counts for what was SENT before');
	set_topic($slow, q(result_timeout => '1 day'));
	message_is($patient, 'status', 'SENT', 'and a longer one ...');
	$attempts = $node->safe_psql('postgres',
		"SELECT attempts FROM outbox.message WHERE id = '$patient'");
	wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.delayed WHERE id = '$patient' AND due_at < now() + '1 hour'", '0')
	  and message_is($patient, 'status, attempts', "SENT|$attempts", 'ends that');
};

subtest 'a result topic later' => sub {
	my $topic = new_topic();
	my $other = new_topic(q(result_timeout => '300 ms'));
	my @ids = send_messages($topic, 2);
	my ($id) = send_messages($other, 1);

	# The cursor of that timeout has passed the messages by, SENT as they were.
	message_is($_, 'status', 'SENT', 'SENT') foreach (@ids);
	message_is($id, 'attempts > 1', 't', 'recovery has come by');
	answer($other, $id, 'SUCCESS');
	$kafka->create_topic("$topic-results", 1);
	set_topic($topic, q(result_timeout => '300 ms', max_attempts => 2));
	message_is($_, 'status, attempts', 'DEAD|2', 'recovery looks at what was SENT before') foreach (@ids);
	$node->safe_psql('postgres', "SELECT outbox.set_topic('$topic')");
	$node->safe_psql('postgres', "SELECT outbox.resend('$ids[0]')");
	message_is($ids[0], 'status, attempts', 'SENT|3', 'without a result topic SENT is the end');
};

# set_topic makes a timeout's cursor start over: a row of a table that the
# publisher writes to, locked for as long as, say, a migration takes.
subtest 'a set_topic that is not committed' => sub {
	my $topic = new_topic(q(result_timeout => '250 ms'));
	my ($id) = send_messages($topic, 1);
	my $session = $node->background_psql('postgres');

	message_is($id, 'attempts > 1', 't', 'the timeout is in use');
	$session->query_safe(
		q(BEGIN; SELECT outbox.set_topic('migration', 'results', result_timeout => '250 ms')));
	my ($next) = send_messages($topic, 1);
	message_is($next, 'attempts > 2', 't', 'recovery goes on meanwhile');
	my $other = new_topic();
	message_is((send_messages($other, 1))[0], 'status', 'SENT', 'and so does publishing');
	answer($topic, $_, 'SUCCESS') foreach ($id, $next);
	$session->query_safe('ROLLBACK');
	$session->quit;
	message_is($_, 'status', 'CONFIRMED', 'and all else') foreach ($id, $next);
};

subtest 'resend' => sub {
	my $topic = new_topic();
	my $expecting = new_topic(q(result_timeout => '200 ms', max_attempts => 1));
	my ($sent) = send_messages($topic, 1);
	my ($dead, $confirmed, $failed) = send_messages($expecting, 3);

	message_is($sent, 'status', 'SENT', 'one is SENT');
	my $start = time();
	$node->safe_psql('postgres', "SELECT outbox.resend('$sent')");
	message_is($sent, 'status, attempts', 'SENT|2', 'it is published again');
	cmp_ok(time() - $start, '<', 8, 'without waiting for the slow poll');
	is(join(' ', map { $_->{header}{id} } $kafka->consume($topic)), "$sent $sent", 'with its id');

	message_is($_, 'status', 'DEAD', 'one is DEAD') foreach ($dead, $confirmed, $failed);
	answer($expecting, $confirmed, 'SUCCESS');
	answer($expecting, $failed, 'FAILED');
	message_is($confirmed, 'status', 'CONFIRMED', 'one is CONFIRMED');
	message_is($failed, 'status', 'FAILED', 'one is FAILED');
	set_topic($expecting, q(result_timeout => '1 hour', max_attempts => 1));
	$node->safe_psql('postgres', "SELECT outbox.resend('$dead')");
	message_is($dead, 'status, attempts, error', 'SENT|2|', 'DEAD ones can be sent again');

	my ($new) = send_messages('no-such-topic', 1);
	my $resend = sub { state_of($node, "SELECT outbox.resend('$_[0]')") };
	is($resend->($new), '55000', 'NEW is refused');
	is($resend->($confirmed), '55000', 'CONFIRMED is refused');
	is($resend->($failed), '55000', 'FAILED is refused');
	is(state_of($node, 'SELECT outbox.resend(gen_random_uuid())'), 'P0002', 'an unknown id is refused')
	  foreach (1 .. 3);
	is(state_of($node, "BEGIN; SELECT outbox.resend('$sent'); SELECT outbox.resend('$sent')"),
		'55000', 'twice is refused');
	message_is($sent, 'status, attempts', 'SENT|2', 'and what is rolled back is not done');
};

subtest 'a held topic' => sub {
	my $topic = new_topic(q(result_timeout => '300 ms', max_attempts => 20));
	my ($id) = send_messages($topic, 1);

	message_is($id, 'attempts > 0', 't', 'it was published once');
	$kafka->delete_topic($topic);
	wait_for_value($node, 'postgres',
		"SELECT state FROM outbox.topic WHERE topic = '$topic'", 'missing')
	  and pass('recovery finds the topic missing');
	message_is($id, 'status', 'NEW', 'its message waits');
	my $attempts = $node->safe_psql('postgres',
		"SELECT attempts FROM outbox.message WHERE id = '$id'");
	wait_for_value($node, 'postgres',
		"SELECT tries > 2 FROM outbox.topic WHERE topic = '$topic'", 't');
	message_is($id, 'status, attempts', "NEW|$attempts", 'what is not acknowledged is no attempt');
	$node->restart;
	$kafka->create_topic($topic, 1);
	message_is($id, "status = 'SENT' AND attempts > $attempts", 't', 'it goes on with the topic');
	is((map { $_->{header}{id} } $kafka->consume($topic))[0], $id, 'there it is');
	answer($topic, $id, 'SUCCESS');
	message_is($id, 'status', 'CONFIRMED', 'and is confirmed');
};

subtest 'restarts' => sub {
	my $topic = new_topic(q(result_timeout => '1 s'));
	my ($id) = send_messages($topic, 1);

	message_is($id, 'status', 'SENT', 'published');
	$node->restart;
	message_is($id, 'attempts', '2', 'published again after a restart');
	kill9_server($node);
	start_again($node);
	message_is($id, 'attempts', '3', 'and once more after a crash');
	my @at = map { $_->{timestamp} } $kafka->consume($topic);
	cmp_ok($at[1] - $at[0], '>=', 1000, 'a restart does not cut the time short');
	cmp_ok($at[2] - $at[1], '>=', 2000, 'nor does a crash');
	answer($topic, $id, 'SUCCESS');
	message_is($id, 'status', 'CONFIRMED', 'until there is a result');
};

subtest 'crashes' => sub {
	my $topic = new_topic();
	my @ids;
	my $published = sub {
		my ($name) = @_;

		local $Test::Builder::Level = $Test::Builder::Level + 1;
		wait_for_value($node, 'postgres',
			"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'SENT'",
			scalar(@ids));
		my %in_kafka = map { $_->{header}{id} => 1 } $kafka->consume($topic);
		is(join(' ', sort keys %in_kafka), join(' ', sort @ids), $name);
	};
	my $restarted = sub {
		wait_until('the server has recovered', sub { $node->psql('postgres', 'SELECT 1') == 0 });
	};

	# Nobody can publish: what is sent now is NEW when the server dies.
	$kafka->pause;
	push @ids, send_messages($topic, 5);
	my ($publisher) = outbox_pids($node, 'publisher');
	kill('KILL', $publisher);
	wait_for_exit($publisher);
	$restarted->();
	push @ids, send_messages($topic, 5);
	$kafka->resume;
	$published->('the publisher was killed');

	# a backend, with one transaction committed and one not
	$kafka->pause;
	push @ids, send_messages($topic, 5);
	my $session = $node->background_psql('postgres', on_error_stop => 0);
	my $pid = $session->query_safe('SELECT pg_backend_pid()');
	$session->query_safe("BEGIN; SELECT outbox.send('$topic', 'never'::text)");
	kill('KILL', $pid);
	wait_for_exit($pid);
	eval { $session->quit };
	$restarted->();
	push @ids, send_messages($topic, 5);
	$kafka->resume;
	$published->('a backend was killed');

	$kafka->pause;
	push @ids, send_messages($topic, 5);
	kill9_server($node);
	$kafka->resume;
	start_again($node);
	$published->('all of the server was killed');
};

$node->stop;
$kafka->stop;
done_testing();
