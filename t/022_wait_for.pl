# outbox.wait_for: who waits for a message is woken by what becomes of it, and
# by nothing else.

use strict;
use warnings;

use IPC::Run ();
use OutboxTest::Cluster;
use OutboxTest::Guard qw(process_state);
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# The workers rest at first: the tests change the statuses themselves.
my $node = new_outbox_node('main', extension => ['postgres']);
my $number = 0;

sub query
{
	my ($sql, $db) = @_;
	return $node->safe_psql($db // 'postgres', $sql);
}

# A topic that expects results
sub new_topic
{
	my $topic = 'topic-' . $number++;

	query("SELECT outbox.set_topic('$topic', '$topic-results')");
	return $topic;
}

sub new_message
{
	my ($topic, $db) = @_;
	return query("SELECT outbox.send('$topic', 'm'::text)", $db);
}

sub change
{
	my ($id, $from, $to) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(query("SELECT outbox.change_status('$id', '$from', '$to')"), 't', "$from to $to");
	return;
}

# Statements in one session: what they return, an error as its SQLSTATE, and
# last what was said in full
sub run
{
	my @statements = map { ('-c', $_) } @_;
	my ($out, $err) = ('', '');

	IPC::Run::run([ 'psql', '-XAtq', '-d', $node->connstr('postgres'), @statements ],
		'>', \$out, '2>', \$err,
		IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	chomp $out;
	return ($out, $err);
}

sub wait_statement
{
	my ($id, $timeout) = @_;
	return sprintf(q(SELECT outbox.wait_for('%s', %s)), $id, $timeout // q('10 minutes'));
}

sub fails
{
	my ($pattern, $name, @statements) = @_;
	my ($out, $err) = run('\set VERBOSITY verbose', @statements);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	like($err, $pattern, $name);
	return;
}

# ---------- sessions that wait ----------

# Start a session with these statements
sub start
{
	my (@statements) = @_;
	my $db = ref $statements[0] ? ${ shift @statements } : 'postgres';
	my $self = { name => 'waiter' . $number++, out => '', err => '' };

	$self->{timeout} = IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default);
	$self->{run} = IPC::Run::start(
		[
			'psql', '-XAtq', '-v', 'VERBOSITY=sqlstate',
			'-d', $node->connstr($db) . " application_name=$self->{name}",
			map { ('-c', $_) } @statements
		],
		'>', \$self->{out}, '2>', \$self->{err}, $self->{timeout});
	return $self;
}

# Wait until it sleeps, in outbox.wait_for or in the statement that is like
# that.  Remembers how often the process had gone to sleep by then.
sub asleep
{
	my ($self, $like) = @_;
	my $last = -1;

	$like //= '%wait_for%';

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_until(
		"$self->{name} waits",
		sub {
			$self->{pid} = query("SELECT pid FROM pg_stat_activity
				WHERE application_name = '$self->{name}' AND state = 'active'
					AND wait_event_type IN ('Extension', 'Timeout') AND query LIKE '$like'");
			return 0 if $self->{pid} eq '' || (process_state($self->{pid}) // '') ne 'S';

			my $before = $last;

			$last = switches($self);
			return $last == $before;
		});
	$self->{switches} = $last;
	return;
}

sub switches
{
	my ($self) = @_;

	return -2 unless -e "/proc/$self->{pid}/status";
	my ($count) = slurp_file("/proc/$self->{pid}/status") =~ /^voluntary_ctxt_switches:\s*(\d+)/m;
	return $count;
}

# It hasn't been woken since it was seen asleep: neither by others nor to look
# for itself
sub undisturbed
{
	my ($self, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(switches($self), $self->{switches}, $name);
	return;
}

# What it has returned, or the SQLSTATE of its error
sub ended
{
	my ($self, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$self->{timeout}->start;
	if (!eval { $self->{run}->finish; 1 } && $@ =~ /timeout/)
	{
		$self->{run}->kill_kill;
		fail("$name: it doesn't end");
		dump_state($node, 'postgres');
		return;
	}
	(my $got = "$self->{out}$self->{err}") =~ s/^ERROR:  |\n\z//mg;
	ref $expected ? like($got, $expected, $name) : is($got, $expected, $name);
	return;
}

# This one waits in another database, through all that happens in the first.
query('CREATE DATABASE other');
query('CREATE EXTENSION outbox', 'other');
my $elsewhere = start(\'other', wait_statement(new_message('orders', 'other')));
asleep($elsewhere);

# ---------- what it returns ----------

subtest 'arguments' => sub {
	my $id = new_message(new_topic());
	my $nobody = '0195c0de-0000-7000-8000-000000000000';

	fails(qr/22004:/, 'NULL id', wait_statement('', q('1 s')) =~ s/''/NULL/r);
	foreach my $none ($nobody, 'ffffffff-ffff-7fff-bfff-ffffffffffff',
		'5b1f1f4b-93b4-4b5e-bf20-4a3d2c1b0a99')
	{
		fails(qr/P0002: there is no message $none\n.*HINT:.*not have committed/s,
			"no message $none", wait_statement($none));
	}
	is(query(wait_statement($id, q('-1 hour'))), 'NEW', 'a negative timeout');
	is(query(wait_statement($id, q('0'))), 'NEW', 'none');

	my $start = time();
	is(query(wait_statement($id, q('300 ms'))), 'NEW', 'a short one');
	cmp_ok(time() - $start, '>=', 0.3, 'takes as long');

	my $other = $node->background_psql('postgres');
	my $uncommitted = $other->query_safe("BEGIN; SELECT outbox.send('orders', 'm'::text)");
	fails(qr/P0002:/, 'not committed yet', wait_statement($uncommitted));
	$other->query_safe('COMMIT');
	is(query(wait_statement($uncommitted, q('0'))), 'NEW', 'committed');
	$other->quit;
};

subtest 'final' => sub {
	my $topic = new_topic();

	foreach my $status (qw(CONFIRMED FAILED DEAD))
	{
		my $id = new_message($topic);

		change($id, 'NEW', $status);
		is(query(wait_statement($id, 'NULL')), $status, "$status is final");
	}
	my $id = new_message($topic);
	change($id, 'NEW', 'SENT');
	is(query(wait_statement($id, q('0'))), 'SENT', 'SENT is the status reached');
	is(query(wait_statement($id, q('200 ms'))), 'SENT', 'also later');

	my $last = new_message('no-results');
	change($last, 'NEW', 'SENT');
	is(query(wait_statement($last)), 'SENT', 'and final without a result topic');
	# a row that others put there parks the database
	query("UPDATE outbox.log SET segment = -1 WHERE id = '$id'");
	query('SELECT outbox.adopt()');
	query("SELECT outbox.change_status('$id', 'SENT', 'FAILED')");
	is(query(wait_statement($id)), 'FAILED', 'of what was moved to where messages are kept');
};

# ---------- who is woken, and when ----------

subtest 'woken' => sub {
	my $topic = new_topic();
	my ($id, $other) = map { new_message($topic) } 1 .. 2;
	my ($waiter, $bystander) = map { start(wait_statement($_, 'NULL')) } ($id, $other);

	asleep($_) foreach ($waiter, $bystander);
	is( query("SELECT string_agg(locktype, ' ') FROM pg_locks WHERE pid = $waiter->{pid}"),
		'virtualxid', 'it holds no lock');
	is( query("SELECT wait_event IN ('Extension', 'OutboxWaitFor') FROM pg_stat_activity
			WHERE pid = $waiter->{pid}"), 't', 'pg_stat_activity tells');
	change($id, 'NEW', 'SENT');
	asleep($waiter);
	undisturbed($bystander, 'who waits for another is not woken');
	query("BEGIN; SELECT outbox.change_status('$id', 'SENT', 'FAILED'); ROLLBACK");
	undisturbed($waiter, 'nor anybody by what is rolled back');
	change($id, 'SENT', 'CONFIRMED');
	ended($waiter, 'CONFIRMED', 'a change of status ends the wait');
	undisturbed($bystander, 'of whom it concerns');
	change($other, 'NEW', 'DEAD');
	ended($bystander, 'DEAD', 'and so for the other');
};

subtest 'the result topic is taken away' => sub {
	my $topic = new_topic();
	my $id = new_message($topic);
	my $waiter = start(wait_statement($id));

	asleep($waiter);
	change($id, 'NEW', 'SENT');
	asleep($waiter);
	query("SELECT outbox.set_topic('$topic')");
	ended($waiter, 'SENT', 'SENT is final now');
};

subtest 'prepared transactions' => sub {
	my $id = new_message(new_topic());
	my $waiter = start(wait_statement($id));

	asleep($waiter);
	query("BEGIN; SELECT outbox.change_status('$id', 'NEW', 'FAILED'); PREPARE TRANSACTION 'one'");
	undisturbed($waiter, 'PREPARE wakes nobody');
	query("COMMIT PREPARED 'one'");
	ended($waiter, 'FAILED', 'COMMIT PREPARED does');
};

subtest 'many' => sub {
	my $topic = new_topic();
	my @ids = map { new_message($topic) } 1 .. 6;
	my $list = join(', ', map { "'$_'" } @ids[ 0 .. 4 ]);
	my @waiters = map { start(wait_statement($ids[ $_ % 5 ])) } 0 .. 19;
	my $last = start(wait_statement($ids[5]));

	asleep($_) foreach (@waiters, $last);
	query("SELECT count(outbox.change_status(id, 'NEW', 'CONFIRMED'))
		FROM outbox.message WHERE id IN ($list)");
	ended($_, 'CONFIRMED', 'each is woken') foreach (@waiters);
	undisturbed($last, 'but for one');

	# more than a transaction remembers
	query("SELECT count(outbox.send('$topic', 'm'::text)) FROM generate_series(1, 5000)");
	query("SELECT count(outbox.change_status(id, 'NEW', 'DEAD')) FROM (SELECT id
		FROM outbox.message WHERE topic = '$topic' AND status = 'NEW' ORDER BY id DESC) AS m");
	ended($last, 'DEAD', 'by a large transaction, too');
};

# Who waits falls asleep just when the status changes.
subtest 'no wake-up is lost' => sub {
	my $topic = new_topic();
	my $each = "DECLARE
			message uuid;
			ids uuid[] := ARRAY(SELECT id FROM outbox.message WHERE topic = '$topic' ORDER BY id);
		BEGIN
			FOREACH message IN ARRAY ids LOOP";

	query("SELECT count(outbox.send('$topic', 'm'::text)) FROM generate_series(1, 2000)");
	my @waiters = map { start("DO \$\$ $each
			PERFORM outbox.wait_for(message, '10 minutes'); END LOOP; END \$\$",
		q(SELECT 'all')) } 1 .. 2;
	asleep($_) foreach (@waiters);
	query("SET synchronous_commit = off;
		DO \$\$ $each
		PERFORM outbox.change_status(message, 'NEW', 'DEAD'); COMMIT; END LOOP; END \$\$");
	ended($_, 'all', 'one after the other') foreach (@waiters);
};

# ---------- transactions ----------

subtest 'its own transaction' => sub {
	my $topic = new_topic();
	my $id = new_message($topic);
	my $send = "outbox.send('$topic', 'm'::text)";
	my $wait_last = q(SELECT outbox.wait_for((SELECT max(id::text)::uuid FROM outbox.log), '1 h'));
	my $error = qr/25001: message \S+ was written or changed by this transaction.*HINT:  Commit first/s;

	fails($error, 'that wrote it', "BEGIN; SELECT $send", $wait_last);
	fails($error, 'in one statement', "SELECT outbox.wait_for($send, '1 h')");
	fails($error, 'in a savepoint', 'BEGIN', "SELECT $send", 'SAVEPOINT a', $wait_last);
	fails($error, 'after a savepoint', 'BEGIN', 'SAVEPOINT a', "SELECT $send",
		'RELEASE a', $wait_last);
	fails($error, 'at REPEATABLE READ', 'BEGIN ISOLATION LEVEL REPEATABLE READ',
		"SELECT $send", $wait_last);
	change($id, 'NEW', 'SENT');
	fails($error, 'that resends it', 'BEGIN', "SELECT outbox.resend('$id')", wait_statement($id));
	fails($error, 'though the status is final', 'BEGIN',
		"SELECT outbox.change_status('$id', 'SENT', 'FAILED')", wait_statement($id));

	my ($out, $err) = run('BEGIN', 'SAVEPOINT a', "SELECT outbox.resend('$id')",
		'ROLLBACK TO a', wait_statement($id, q('0')));
	is("$out$err", "\nSENT", 'a savepoint that was rolled back does not count');
	fails(qr/P0002:/, 'nor does what it wrote exist', 'BEGIN', 'SAVEPOINT a',
		"CREATE TABLE ids AS SELECT $send AS id", 'ROLLBACK TO a',
		wait_statement('0195c0de-0000-7000-8000-000000000000'));
};

subtest 'a snapshot of its own' => sub {
	my $topic = new_topic();

	foreach my $level ('REPEATABLE READ', 'SERIALIZABLE', 'REPEATABLE READ READ ONLY')
	{
		my $id = new_message($topic);
		my $session = start("BEGIN ISOLATION LEVEL $level",
			"SELECT status FROM outbox.message WHERE id = '$id'",
			wait_statement($id), "SELECT status FROM outbox.message WHERE id = '$id'");

		asleep($session);
		change($id, 'NEW', 'SENT');
		change($id, 'SENT', 'CONFIRMED');
		ended($session, "NEW\nCONFIRMED\nNEW", "$level: not the transaction's");
	}
};

subtest 'in a parallel worker' => sub {
	my $id = new_message(new_topic());

	query(q[CREATE FUNCTION mislabelled(uuid) RETURNS text LANGUAGE sql PARALLEL SAFE
		AS $$SELECT outbox.wait_for($1, '1 s')::text$$]);
	fails(qr/25000: .*outbox\.wait_for\(\) during a parallel operation/, 'it is refused',
		q(SELECT set_config(name, 'on', false) FROM pg_settings
			WHERE name IN ('force_parallel_mode', 'debug_parallel_query')),
		"SELECT mislabelled('$id')");
};

# ---------- who may not wait any longer ----------

subtest 'interrupted' => sub {
	my $topic = new_topic();
	my ($first, $second) = map { new_message($topic) } 1 .. 2;
	my $session = start(wait_statement($first, 'NULL'), 'SELECT pg_sleep(600)',
		wait_statement($second));

	asleep($session);
	query("SELECT pg_cancel_backend($session->{pid})");
	asleep($session, '%pg_sleep%');
	change($first, 'NEW', 'SENT');
	undisturbed($session, 'nothing is left of a wait that was cancelled');
	query("SELECT pg_cancel_backend($session->{pid})");
	asleep($session);
	change($second, 'NEW', 'FAILED');
	ended($session, "FAILED\n57014\n57014", 'and the next one works');

	fails(qr/57014: .*statement timeout/, 'statement_timeout',
		q(SET statement_timeout = '200 ms'), wait_statement($first));

	$session = start(wait_statement($first));
	asleep($session);
	query("SELECT pg_terminate_backend($session->{pid})");
	ended($session, qr/^FATAL:  57P01\n/, 'terminated');
};

subtest 'rights' => sub {
	my $id = new_message(new_topic());

	query('CREATE ROLE app LOGIN');
	fails(qr/42501:/, 'nothing is granted to PUBLIC', 'SET ROLE app', wait_statement($id, q('0')));
	query('GRANT USAGE ON SCHEMA outbox TO app; GRANT EXECUTE ON FUNCTION outbox.wait_for TO app');
	is((run('SET ROLE app', wait_statement($id, q('0'))))[0], 'NEW', 'EXECUTE is enough');
	change($id, 'NEW', 'SENT');
	is((run('SET ROLE app', wait_statement($id, q('0'))))[0], 'SENT', 'also to look at the topic');
	fails(qr/42501:/, 'and gives nothing else', 'SET ROLE app',
		'SELECT status FROM outbox.message');
};

subtest 'the extension is dropped' => sub {
	undisturbed($elsewhere, 'a waiter in another database has slept through all this');
	query(q(SET lock_timeout = '20s'; DROP EXTENSION outbox), 'other');
	ended($elsewhere, '42P01', q(it is in nobody's way, and ends));
};

# ---------- with the workers ----------

subtest 'with a broker' => sub {
	my $mock = OutboxTest::Mock->new;

	$mock->start;
	$mock->create_topic($_, 1) foreach (qw(orders results audit));
	query(q(SELECT outbox.set_topic('orders', 'results')));
	my ($good, $bad) = map { new_message('orders') } 1 .. 2;
	my $audit = new_message('audit');
	my ($confirmed, $failed, $sent) = map { start(wait_statement($_)) } ($good, $bad, $audit);

	asleep($_) foreach ($confirmed, $failed, $sent);
	set_conf($node, 'outbox.bootstrap_servers' => $mock->bootstrap);
	ended($sent, 'SENT', 'published');
	$mock->produce('results', { key => $good, value => 'SUCCESS' },
		{ key => $bad, value => 'FAILED' });
	ended($confirmed, 'CONFIRMED', 'a result SUCCESS');
	ended($failed, 'FAILED', 'a result FAILED');
	set_conf($node, 'outbox.bootstrap_servers' => '');
	$mock->stop;
};

subtest 'a fast shutdown' => sub {
	my $session = start(wait_statement(new_message(new_topic()), 'NULL'));
	my $start;

	asleep($session);
	$start = time();
	$node->stop('fast');
	cmp_ok(time() - $start, '<', 30, 'is not held up');
	ended($session, qr/57P01/, 'and ends the wait');
};

done_testing();
