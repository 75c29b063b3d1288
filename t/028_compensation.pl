# Compensation: on_confirmed, on_failed and on_dead are called once for each
# change of a status, in its transaction, whatever fails and whoever dies.

use strict;
use warnings;

use IPC::Run ();
use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Results;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node =
  new_outbox_node('main', bootstrap => $kafka->bootstrap, extension => ['postgres']);
my $test = OutboxTest::Results->new($node, $kafka);

sub query
{
	my ($sql) = @_;
	return $test->query($sql);
}

# The handler writes down each call, with no constraint that would hide a second
# one, and does what the table "orders" says for its message or its topic.
query(<<'EOS');
CREATE ROLE shop;
CREATE ROLE store;
GRANT USAGE ON SCHEMA outbox TO shop, store;
GRANT USAGE ON TYPE outbox.message TO shop, store;
GRANT EXECUTE ON FUNCTION outbox.set_topic TO shop, store;
SELECT outbox.grant_topic('*', 'shop', 'send');
SELECT outbox.grant_topic('*', 'store', 'send');
CREATE SCHEMA app;
GRANT CREATE, USAGE ON SCHEMA app TO shop, store;

CREATE TABLE app.calls (id uuid, topic text, status text, result text, error text,
	role text, top xid8, n bigint GENERATED ALWAYS AS IDENTITY);
CREATE TABLE app.trouble (what text, kind text);
CREATE SEQUENCE app.tries;
CREATE TABLE app.credit (id uuid, amount int,
	CONSTRAINT credit_once EXCLUDE USING btree (amount WITH =) DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION app.note(message outbox.message) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	trouble text;
BEGIN
	PERFORM nextval('app.tries');
	INSERT INTO app.calls VALUES (message.id, message.topic, message.status, message.result,
		message.error, current_user, pg_current_xact_id());
	FOR trouble IN SELECT t.kind FROM app.trouble AS t
			WHERE t.what IN (message.id::text, message.topic) LOOP
		CASE trouble
			WHEN 'raise' THEN RAISE EXCEPTION 'refused' USING ERRCODE = 'ZZ001';
			WHEN 'lock' THEN PERFORM pg_advisory_xact_lock_shared(28);
			WHEN 'credit' THEN INSERT INTO app.credit VALUES (message.id, 1);
		END CASE;
	END LOOP;
END
$$;
GRANT ALL ON ALL TABLES IN SCHEMA app TO shop, store;
GRANT ALL ON ALL SEQUENCES IN SCHEMA app TO shop, store;

-- in which transaction positions change
CREATE TABLE app.positions (topic text, next_offset bigint, top xid8);
CREATE FUNCTION app.position() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO app.positions VALUES (NEW.topic, NEW.next_offset, pg_current_xact_id());
	RETURN NULL;
END
$$;
CREATE TRIGGER position AFTER UPDATE ON outbox.consumer_offset
	FOR EACH ROW EXECUTE FUNCTION app.position();
EOS

# Sets the topic's handlers, as a role.  $which: those of c, f and d that call
# app.note; more: further arguments.
sub set_handlers
{
	my ($role, $topic, $results, $which, $more) = @_;
	my %names = (c => 'on_confirmed', f => 'on_failed', d => 'on_dead');
	my $handlers =
	  join('', map { ", $names{$_} => 'app.note(outbox.message)'" } split //, $which);

	# what somebody else has set can't be set by the role
	query("UPDATE outbox.topic_config SET role = '$role' WHERE topic = '$topic'");
	query("SET ROLE $role; SELECT outbox.set_topic('$topic', '$results'$handlers"
		  . ($more // '') . ')');
	return;
}

# A topic with its result topic, and handlers of the role shop
sub topics_of
{
	my ($which, %options) = @_;
	my ($topic, $results) = $test->new_topics(%options);

	set_handlers('shop', $topic, $results, $which, $options{more});
	return ($topic, $results);
}

sub result
{
	my ($id, $value, $partition) = @_;

	$value = qq({"status":"FAILED","error":"out of stock"}) if $value eq 'FAILED';
	return { key => $id, value => $value, partition => $partition };
}

sub trouble
{
	my ($what, $kind) = @_;

	query("INSERT INTO app.trouble VALUES ('$what', '$kind')");
	return;
}

sub no_trouble
{
	my ($what) = @_;

	query("DELETE FROM app.trouble WHERE what = '$what'");
	return;
}

# The statuses a handler was called with for a message, in order
sub called
{
	my ($id, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is(query("SELECT string_agg(status, ' ' ORDER BY n) FROM app.calls WHERE id = '$id'"),
		$expected, $name);
	return;
}

# What is owed for a message: outcome, whether it is parked, SQLSTATE and error
sub owed
{
	my ($id) = @_;
	return query('SELECT outcome, due_at IS NULL, sqlstate, error FROM outbox.handler_call'
		  . " WHERE message_id = '$id'");
}

# Wait until nothing is owed for the messages of a topic
sub paid
{
	my ($topic, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok($test->wait_for("SELECT count(*) FROM outbox.handler_call WHERE topic = '$topic'", 0),
		$name);
	return;
}

# Wait until so many calls of a topic's messages are parked
sub parked
{
	my ($topic, $n) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$test->wait_for('SELECT count(*) FROM outbox.handler_call'
		  . " WHERE topic = '$topic' AND due_at IS NULL", $n);
	return;
}

# Every message of the topic has its status, and was called with it once
sub each_called_once
{
	my ($topic, $n, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is( query(<<"EOS"), "$n|$n|$n", $name);
SELECT count(DISTINCT m.id), count(c.id), count(*) FILTER (WHERE m.status::text = c.status)
FROM outbox.message AS m LEFT JOIN app.calls AS c ON c.id = m.id
WHERE m.topic = '$topic' AND m.status IN ('CONFIRMED', 'FAILED')
EOS
	return;
}

# Ends the consumer in some way, and waits until there is another one.
sub replace_consumer
{
	my ($end) = @_;
	my $running = q(SELECT count(pid) FROM outbox.worker WHERE kind = 'consumer');

	$test->wait_for($running, 1);
	my $pid = query(q(SELECT pid FROM outbox.worker WHERE kind = 'consumer'));
	$end->($pid);
	$test->wait_for("$running AND pid <> $pid", 1);
	return;
}

subtest 'in the transaction of the result' => sub {
	my ($topic, $results) = topics_of('cf');
	my @ids = $test->messages($topic, 2);

	$kafka->produce($results, result($ids[0], 'SUCCESS'), result($ids[1], 'FAILED'));
	$test->counts_are($results, { applied => 2 }, 'they are applied');
	is( query("SELECT status, result, error, role FROM app.calls WHERE topic = '$topic' ORDER BY n"),
		qq(CONFIRMED|SUCCESS||shop\nFAILED|{"status":"FAILED","error":"out of stock"}|out of stock|shop),
		'the handler sees what the message has become');
	is( query("SELECT count(*) FROM outbox.log AS l JOIN app.calls AS c ON c.id = l.id"
			  . " WHERE l.topic = '$topic' AND l.xmin = c.xmin"),
		2, 'its effects are of the transaction of the change');
	is( query('SELECT count(*) FROM app.calls AS c JOIN app.positions AS p'
			  . " ON p.topic = '$results' AND p.top = c.top"
			  . " WHERE c.topic = '$topic' AND p.next_offset > 0"),
		2, 'and so is the position');
};

subtest 'waiting' => sub {
	my ($topic, $results) = topics_of('cf');
	my ($id) = $test->messages($topic, 1);
	my $lock = $node->background_psql('postgres');

	trouble($topic, 'lock');
	$lock->query_safe('SELECT pg_advisory_lock(28)');
	$kafka->produce($results, result($id, 'SUCCESS'));
	$test->wait_for(q(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted), 1);
	is(query("SELECT outbox.wait_for('$id', '50 ms')"), 'SENT', 'it is not over with the call');

	my ($out, $err) = ('', '');
	my $waiter = IPC::Run::start(
		[
			'psql', '-XAtq', '-d', $node->connstr('postgres') . ' application_name=waiter',
			'-c', "SELECT outbox.wait_for('$id', '3 minutes')",
			'-c', "SELECT count(*) FROM app.calls WHERE id = '$id'"
		],
		'>', \$out, '2>', \$err, IPC::Run::timeout($PostgreSQL::Test::Utils::timeout_default));
	$test->wait_for(q(SELECT count(*) FROM pg_stat_activity
		WHERE application_name = 'waiter' AND wait_event_type = 'Extension'), 1);
	$lock->quit;
	$waiter->finish;
	is("$out$err", "CONFIRMED\n1\n", 'but with its effects');
};

subtest 'once' => sub {
	my ($topic, $results) = topics_of('cf', partitions => 2);
	my @ids = $test->messages($topic, 3);

	$kafka->produce($results,
		(map { result($ids[0], $_, 0) } qw(SUCCESS SUCCESS FAILED SUCCESS)),
		(map { result($ids[1], $_, 0) } qw(FAILED SUCCESS FAILED)));
	$test->counts_are($results, { applied => 2, repeated => 3, contrary => 2 }, 'in one go');
	$kafka->produce($results,
		map { (result($ids[$_], 'FAILED', 1), result($ids[$_], 'SUCCESS', 1)) } 0 .. 2);
	$test->counts_are($results, { applied => 3, repeated => 5, contrary => 5 }, 'and again');
	called($ids[0], 'CONFIRMED', 'the first one counts');
	called($ids[1], 'FAILED', 'whatever it is');
	called($ids[2], 'FAILED', 'in each partition');

	# somebody else is quicker
	my ($id) = $test->messages($topic, 1);
	my $other = $node->background_psql('postgres');
	$other->query_safe("BEGIN; SELECT outbox.change_status('$id', 'SENT', 'CONFIRMED')");
	$kafka->produce($results, result($id, 'FAILED', 0));
	$test->wait_for(q(SELECT count(*) FROM pg_stat_activity
		WHERE wait_event_type = 'Lock' AND backend_type = 'outbox consumer'), 1);
	$other->query_safe('COMMIT');
	$test->counts_are($results, { applied => 3, repeated => 5, contrary => 6 }, 'too late by a moment');
	called($id, '', 'calls nothing');
	$other->quit;
};

subtest 'from every status' => sub {
	my ($topic, $results) = $test->new_topics();
	my $missing = $test->new_name('missing');

	set_handlers('shop', $missing, $results, 'cf');
	my ($new) = query("SELECT outbox.send('$missing', 'm'::text)");
	$kafka->produce($results, result($new, 'SUCCESS'));
	$test->counts_are($results, { applied => 1 }, 'NEW');
	called($new, 'CONFIRMED', 'calls');

	set_handlers('shop', $topic, $results, 'cfd', q(, result_timeout => '200 ms', max_attempts => 1));
	my @ids = split /\n/,
	  query("SELECT outbox.send('$topic', 'm'::text) FROM generate_series(1, 2)");
	$test->wait_for("SELECT count(*) FROM app.calls WHERE topic = '$topic'", 2);
	$kafka->produce($results, result($ids[0], 'SUCCESS'), result($ids[1], 'FAILED'));
	$test->counts_are($results, { applied => 3 }, 'DEAD');
	called($ids[0], 'DEAD CONFIRMED', 'calls, after it has called for that');
	called($ids[1], 'DEAD FAILED', 'either way');
};

subtest 'several topics, one result topic' => sub {
	my ($both, $results) = topics_of('cf', partitions => 2);
	my ($failed, $none, $other) = map { $test->new_name('orders') } 1 .. 3;
	my %expected = ($both => 100, $failed => 50, $none => 0, $other => 50);
	my %roles = ($both => 'shop', $failed => 'shop', $none => '', $other => 'store');

	$kafka->create_topic($_, 1) foreach ($failed, $none, $other);
	foreach my $round (1, 2)
	{
		set_handlers('shop', $failed, $results, 'f');
		set_handlers('shop', $none, $results, '');

		# in the second round not all are of one role
		set_handlers('store', $other, $results, $round == 1 ? '' : 'c');
		$expected{$other} = $round == 1 ? 0 : 50;
		my @ids = map { $test->messages($_, 100) } sort keys %expected;
		my @records = map { result($ids[$_], $_ % 2 ? 'SUCCESS' : 'FAILED', $_ / 2 % 2) } 0 .. $#ids;

		query('TRUNCATE app.calls');
		$kafka->produce($results, map { @records[ $_ * 20 .. $_ * 20 + 19 ] } map { ($_, 19 - $_) } 0 .. 9);
		$test->counts_are($results, { applied => 400 * $round }, 'all are applied');
		foreach my $topic (sort keys %expected)
		{
			is( query('SELECT count(*), count(DISTINCT id), max(role) FROM app.calls AS c'
					  . ' JOIN outbox.message AS m USING (id)'
					  . " WHERE m.topic = '$topic' AND m.status::text = c.status"),
				"$expected{$topic}|$expected{$topic}|" . ($expected{$topic} ? $roles{$topic} : ''),
				"$topic: each has called what it should");
		}
	}
};

subtest 'a handler that raises' => sub {
	my $more = ', handler_attempts => 3';
	my ($topic, $results) = topics_of('cf', more => $more);
	my ($bad, @others) = $test->messages($topic, 6);
	my $unanswered = pop @others;
	my $log = -s $node->logfile;

	trouble($bad, 'raise');
	$kafka->produce($results, map { result($_, 'FAILED') } $bad, @others);
	$test->counts_are($results, { applied => 5 }, 'the position moves on');
	each_called_once($topic, 4, 'the others pass');
	parked($topic, 1);
	is(owed($bad), 'F|t|ZZ001|refused', 'it waits, with its outcome and error');
	$test->state_is($bad, 'SENT||', 'the message has not changed');
	is(query('SELECT handler_calls_owed, handler_calls_parked FROM outbox.stat'), '1|1',
		'outbox.stat shows it');
	like(slurp_file($node->logfile, $log),
		qr/WARNING:  function app.note keeps failing: refused\n.*DETAIL:.*"$topic".*\n.*HINT:.*outbox.replay\('$bad'::uuid\)/,
		'so does the log, with what to do');

	# what comes meanwhile is compared with the result that waits
	$kafka->produce($results, result($bad, 'FAILED'), result($bad, 'SUCCESS'));
	$test->counts_are($results, { applied => 5, repeated => 1, contrary => 1 }, 'the result is known');

	# recovery goes by the ids, so whoever saw the one saw the other
	set_handlers('shop', $topic, $results, 'cf', "$more, result_timeout => '200 ms'");
	$test->wait_for("SELECT attempts > 1 FROM outbox.message WHERE id = '$unanswered'", 't');
	is(query("SELECT status, attempts FROM outbox.message WHERE id = '$bad'"), 'SENT|1',
		'it is not published again');
	set_handlers('shop', $topic, $results, 'cf', "$more, result_timeout => '300 ms', max_attempts => 1");
	$test->wait_for("SELECT status FROM outbox.message WHERE id = '$unanswered'", 'DEAD');
	is(query("SELECT status, attempts FROM outbox.message WHERE id = '$bad'"), 'SENT|1',
		'nor dead');

	query("SELECT outbox.replay('$bad'::uuid)");
	parked($topic, 0);
	parked($topic, 1);
	no_trouble($bad);
	is(query("SELECT outbox.replay('$topic')"), 1, 'it is replayed');
	paid($topic, 'and comes through');
	each_called_once($topic, 5, 'once');
	is(query("SELECT outbox.replay('$topic')"), 0, 'nothing is owed any more');
};

subtest 'retried' => sub {
	my $n = 30;
	my ($topic, $results) = topics_of('cf');
	my @ids = $test->messages($topic, $n);

	trouble($topic, 'raise');
	$kafka->produce($results, map { result($ids[$_], $_ % 2 ? 'SUCCESS' : 'FAILED') } 0 .. $n - 1);
	$test->counts_are($results, { applied => $n }, 'the position moves on');
	$test->wait_for('SELECT min(attempts) >= 3 FROM outbox.handler_call', 't')
	  and pass('they are called again and again');
	set_handlers('shop', $topic, $results, 'cf', ', handler_attempts => 1');
	parked($topic, $n);
	my $tries = query('SELECT last_value FROM app.tries');
	my $start = time();
	is(query("SELECT outbox.replay('$topic')"), $n, 'they are replayed');
	$test->wait_for("SELECT last_value >= $tries + $n FROM app.tries", 't');
	cmp_ok(time() - $start, '<', 20, 'one right after the other');
	no_trouble($topic);
	$node->restart('immediate');
	query("SELECT outbox.replay('$topic')");
	paid($topic, 'they succeed in the end, also after a crash');
	each_called_once($topic, $n, 'once');
};

subtest 'a constraint that fails at the end' => sub {
	my ($topic, $results) = topics_of('cf');
	my @ids = $test->messages($topic, 20);

	trouble($_, 'credit') foreach (@ids[ 3, 7, 11 ]);
	$kafka->produce($results, map { result($_, 'FAILED') } @ids);
	$test->counts_are($results, { applied => 20 }, 'all results are known');
	is(query("SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'FAILED'"),
		18, 'two are owed');
	each_called_once($topic, 18, 'the others have called once');
	like(owed($ids[7]), qr/^F\|f\|23P01\|.*credit_once/, 'it is that of the constraint');
	is(query('SELECT id FROM app.credit'), $ids[3], 'what came first has it');
	query("DELETE FROM app.trouble WHERE what <> '$ids[3]' AND kind = 'credit'");
	paid($topic, 'when that is repaired');
	each_called_once($topic, 20, 'they have called once, too');
};

subtest 'the function is gone, or not wanted any more' => sub {
	my ($gone, $results) = ($test->new_topics());
	my ($unset, $unset_results) = topics_of('cf');
	my @ids = $test->messages($gone, 2);
	my ($id) = $test->messages($unset, 1);

	query('CREATE FUNCTION app.gone(message outbox.message) RETURNS void LANGUAGE sql'
		  . ' BEGIN ATOMIC SELECT app.note(message); END');
	query("UPDATE outbox.topic_config SET role = 'shop' WHERE topic = '$gone'");
	query("SET ROLE shop; SELECT outbox.set_topic('$gone', '$results',"
		  . " on_confirmed => 'app.gone(outbox.message)', on_failed => 'app.note(outbox.message)', handler_attempts => 1)");
	my $definition = query(q(SELECT pg_get_functiondef('app.gone'::regproc)));
	query('DROP FUNCTION app.gone');
	$kafka->produce($results, result($ids[0], 'SUCCESS'), result($ids[1], 'FAILED'));
	$test->counts_are($results, { applied => 2 }, 'the position moves on');
	called($ids[1], 'FAILED', 'the other handler is called');
	$test->wait_for(
		"SELECT error FROM outbox.handler_call WHERE message_id = '$ids[0]' AND due_at IS NOT NULL",
		'function app.gone(outbox.message) does not exist');
	query($definition);

	trouble($id, 'raise');
	$kafka->produce($unset_results, result($id, 'FAILED'));
	$test->counts_are($unset_results, { applied => 1 }, 'another one is owed');
	set_handlers('shop', $unset, $unset_results, '');
	paid($unset, 'with no handler it is owed no more');
	$test->state_is($id, 'FAILED|{"status":"FAILED","error":"out of stock"}|out of stock',
		'and the result takes effect');
	called($id, '', 'by itself');
	paid($gone, 'the function is back');
	called($ids[0], 'CONFIRMED', 'and is called');
};

subtest 'on_dead' => sub {
	my ($topic, $results) = topics_of('cfd', more => q(, result_timeout => '1 s', max_attempts => 1));
	my ($late) = $test->messages($topic, 1);

	$test->wait_for("SELECT status FROM outbox.message WHERE id = '$late'", 'DEAD');
	paid($topic, 'no result');
	called($late, 'DEAD', 'it is called');

	# so is a message that the topic has no room for
	$kafka->alter_config($topic, 'max.message.bytes' => 2000);
	my $large = query("SELECT outbox.send('$topic', repeat('x', 5000))");
	$test->wait_for("SELECT status FROM outbox.message WHERE id = '$large'", 'DEAD');
	paid($topic, 'too large');
	called($large, 'DEAD', 'it is called');

	$node->restart;
	query("SELECT outbox.resend('$late')");
	$test->wait_for("SELECT count(*) FROM app.calls WHERE id = '$late'", 2);
	called($late, 'DEAD DEAD', 'again when it has died again');
	called($large, 'DEAD', 'but not after a restart');
	$kafka->produce($results, result($late, 'FAILED'));
	$test->counts_are($results, { applied => 1 }, 'a late result');
	called($late, 'DEAD DEAD FAILED', 'calls, too');

	# a notice that fails is owed as well
	my ($owed) = $test->messages($topic, 1);
	trouble($owed, 'raise');
	$test->wait_for("SELECT attempts > 0 FROM outbox.handler_call WHERE message_id = '$owed'", 't');
	like(owed($owed), qr/^D\|f\|ZZ001\|refused$/, 'when it fails it is owed');
	no_trouble($owed);
	paid($topic, 'and made up for');
	called($owed, 'DEAD', 'once');
};

subtest 'whoever dies' => sub {
	my ($topic, $results) = topics_of('cfd', partitions => 2);
	my @ids = $test->messages($topic, 600);
	my @deaths = (
		sub { replace_consumer(sub { query("SELECT pg_terminate_backend($_[0])") }) },
		sub { replace_consumer(sub { kill('KILL', $_[0]) }) },
		sub {
			kill9_server($node);
			start_again($node);
		});

	# some calls fail at first, and are owed when it happens
	trouble($_, 'raise') foreach (@ids[ map { $_ * 60 + 7 } 0 .. 9 ]);
	foreach my $part (0 .. 5)
	{
		my $seen = query("SELECT count(*) FROM app.calls WHERE topic = '$topic'");

		$kafka->produce($results, map { result($ids[ $part * 100 + $_ ],
				$_ % 2 ? 'SUCCESS' : 'FAILED', $_ / 2 % 2) } 0 .. 99);
		$test->wait_for("SELECT count(*) > $seen FROM app.calls WHERE topic = '$topic'", 't');
		$deaths[ $part % @deaths ]->();
	}
	$test->counts_are($results, { applied => 600 }, 'each result is applied once');
	query(q(DELETE FROM app.trouble WHERE kind = 'raise'; SELECT outbox.replay('none')));
	paid($topic, 'no call is owed');
	each_called_once($topic, 600, 'each has called once');
};

$node->stop;
$kafka->stop;
done_testing();
