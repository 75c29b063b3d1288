# Results of messages that retention has moved, in one batch with those of
# messages that are where they were: all changes of a status lock the rows in
# one order, which is that of the ids in the ring, and then that of segment -1.

use strict;
use warnings;

use OutboxTest::Clock;
use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Results;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant { OLD => 20, YOUNG => 10, ALL => 40 };

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_outbox_node(
	'main',
	bootstrap => $kafka->bootstrap,
	conf => "outbox.retention = '14min'",
	start => 0);
start_with_clock($node);
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION outbox;
CREATE TABLE call (id uuid, batch xid8 DEFAULT pg_current_xact_id());
CREATE FUNCTION note(message outbox.message) RETURNS void LANGUAGE sql
AS 'INSERT INTO public.call VALUES (message.id)';
EOS
my $test = OutboxTest::Results->new($node, $kafka);

sub query
{
	my ($sql) = @_;
	return $test->query($sql);
}

# A segment is filled for a minute.
sub minutes
{
	my ($n) = @_;

	push_clock($node, 60 * $n);
	query('SELECT outbox.config_changed()');
	return;
}

# Messages of a topic that wait for results: those of a segment of which all but
# one in the middle were moved, and those of two others.  Returns their ids, and
# the session that keeps the one where it is until it ends.
sub kept_and_others
{
	my ($topic) = @_;

	# what others have left; the keeper would hold that up
	minutes(16);
	$test->wait_for('SELECT count(*) FROM outbox.log WHERE segment >= 0', 0);

	my $keeper = $node->background_psql('postgres');
	my @ids = $test->messages($topic, OLD);

	$keeper->query_safe("BEGIN; SELECT FROM outbox.log WHERE id = '$ids[7]' FOR KEY SHARE");
	minutes(16);
	$test->wait_for("SELECT count(*) FROM outbox.log_kept WHERE topic = '$topic'", OLD - 1);
	push @ids, $test->messages($topic, YOUNG);
	minutes(2);
	push @ids, $test->messages($topic, YOUNG);
	is( query("SELECT string_agg(n::text, ' ' ORDER BY id) FROM (SELECT min(id::text) AS id, count(*) AS n"
			. " FROM outbox.log WHERE topic = '$topic' GROUP BY segment) AS s"),
		join(' ', OLD - 1, 1, YOUNG, YOUNG), 'they are in segment -1 and in three others');
	return ($keeper, @ids);
}

sub rest
{
	set_conf($node, 'outbox.enabled' => 'off');
	$test->wait_for(q(SELECT bool_and(state LIKE 'resting%') FROM outbox.worker WHERE kind <> 'launcher'), 't');
	return;
}

# Locks what is in the ring from that id on, lets somebody begin that waits for it,
# and then locks what is in segment -1.
sub lock_meanwhile
{
	my ($topic, $from, $begin, $who) = @_;
	my $other = $node->background_psql('postgres');
	my $lock = sub {
		$other->query_safe("SELECT FROM outbox.log WHERE topic = '$topic' AND $_[0] ORDER BY id FOR NO KEY UPDATE");
	};
	my $since = -s $node->logfile;

	$other->query_safe('BEGIN');
	$lock->("segment >= 0 AND id >= '$from'");
	$begin->();
	$test->wait_for("SELECT count(*) FROM pg_stat_activity WHERE $who AND wait_event_type = 'Lock'", 1);
	ok(eval { $lock->('segment < 0'); $other->query_safe('COMMIT'); 1 }, 'the other one gets all of them')
	  or diag($@);
	eval { $other->quit };
	return $since;
}

sub no_deadlock
{
	my ($since) = @_;

	unlike(slurp_file($node->logfile, $since), qr/deadlock detected/, 'there was no deadlock');
	return;
}

# By turns one that was moved, or is the one beside them, and another one; what
# the results say is given.  Locked is what is in the ring, or, if so said, only
# what isn't of the segment that was moved.
sub results_while_locked
{
	my ($topic, $results, $say, $not_the_one) = @_;
	my ($keeper, @ids) = kept_and_others($topic);
	my @turns = map { ($_, $_ + OLD) } 0 .. OLD - 1;

	rest();
	$kafka->produce($results, map { { key => $ids[$_], value => $say->($_) } } @turns);
	my $since = lock_meanwhile($topic, $ids[ $not_the_one ? OLD : 0 ], sub { set_conf($node, 'outbox.enabled' => 'on') },
		q(backend_type LIKE 'outbox consumer%'));
	$test->counts_are($results, { applied => ALL }, 'each result is applied once');
	my $said = join(' ', map { $say->($_) eq 'SUCCESS' ? 'CONFIRMED' : 'FAILED' } 0 .. ALL - 1);
	is(query("SELECT string_agg(status::text, ' ' ORDER BY id) FROM outbox.message WHERE topic = '$topic'"),
		$said, 'and each message is what its own result says');
	no_deadlock($since);
	is(query(q(SELECT restarts FROM outbox.worker WHERE kind = 'consumer')), 0, 'the consumer went on');
	$keeper->quit;
	return;
}

# Some transaction has changed messages here and there.
sub one_batch
{
	my ($batch, $from) = @_;

	is( query("SELECT count(*) > 0 FROM (SELECT FROM $from GROUP BY $batch"
			. ' HAVING bool_or(l.segment < 0) AND bool_or(l.segment >= 0)) AS b'), 't',
		'a batch was about both');
	return;
}

my $patient = q(, result_timeout => '30 days');

foreach my $not_the_one (0, 1)
{
	my $which = $not_the_one ? ', where some are locked' : '';

	subtest "all of one kind$which" => sub {
		my ($topic, $results) = $test->new_topics(rest => $patient);

		results_while_locked($topic, $results, sub { 'SUCCESS' }, $not_the_one);
		one_batch('l.xmin::text', "outbox.log AS l WHERE l.topic = '$topic'");
	};

	subtest "of both kinds$which" => sub {
		my ($topic, $results) = $test->new_topics(rest => $patient);

		results_while_locked($topic, $results, sub { $_[0] % 3 == 0 ? 'FAILED' : 'SUCCESS' },
			$not_the_one);
		one_batch('l.xmin::text', "outbox.log AS l WHERE l.topic = '$topic'");
	};
}

subtest 'with handlers' => sub {
	my ($topic, $results) = $test->new_topics(rest => "$patient, on_confirmed => 'note(outbox.message)'");

	results_while_locked($topic, $results, sub { 'SUCCESS' }, 1);
	is(query('SELECT count(*), count(DISTINCT id) FROM call'), join('|', ALL, ALL), 'each is called once');
	one_batch('c.batch', 'call AS c JOIN outbox.log AS l USING (id)');
};

subtest 'resend' => sub {
	my ($topic) = $test->new_topics(rest => $patient);
	my ($keeper, @ids) = kept_and_others($topic);
	my $resender = $node->background_psql('postgres');
	my $resend = "SELECT outbox.resend('$topic', '2020-01-01', clock_timestamp() + interval '1 day')";
	my $since = lock_meanwhile(
		$topic, $ids[0],
		sub { $resender->query_until(qr/begun/, "\\echo begun\n$resend;\n") },
		"query LIKE '%outbox.resend(%' AND pid <> pg_backend_pid()");

	$test->wait_for("SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'SENT' AND attempts = 2",
		ALL);
	no_deadlock($since);
	is(scalar(my @records = $kafka->consume($topic)), 2 * ALL, 'all go out once more');
	$_->quit foreach ($resender, $keeper);
};

$node->stop;
$kafka->stop;
done_testing();
