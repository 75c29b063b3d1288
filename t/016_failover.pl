# Failover: what a standby does and doesn't do before it is promoted, and what is
# there afterwards, as doc/guarantees.md says.
#
# Two servers change their parts.  The standby of a synchronous primary takes
# over under load; the old primary follows it, asynchronously; it takes over
# while the other one still lives; and that one follows again.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Guard qw(spawn_guarded reap);
use OutboxTest::Kafka;
use OutboxTest::Orders;
use OutboxTest::Standby;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
$kafka->create_topic('orders', 3);
$kafka->create_topic('results', 2);
$kafka->create_topic($_, 1) foreach (qw(plain inbound replies));

my $alpha = new_outbox_node(
	'alpha',
	bootstrap => $kafka->bootstrap,
	init => { allows_streaming => 1 },
	conf => "wal_log_hints = on\nwal_keep_size = 256MB\nwal_retrieve_retry_interval = '100ms'",
	extension => ['postgres']);

create_orders($alpha, result_timeout => '1 hour');
$alpha->safe_psql('postgres', <<'EOS');
CREATE FUNCTION placed(customer int) RETURNS uuid LANGUAGE sql
AS $$
	WITH c AS (UPDATE customers SET orders = orders + 1 WHERE id = customer RETURNING orders)
	INSERT INTO orders SELECT gen_random_uuid(), customer, c.orders, false FROM c RETURNING id;
$$;
CREATE TABLE confirmed (id uuid);
CREATE FUNCTION confirm(m outbox.message) RETURNS void LANGUAGE sql
AS $$ INSERT INTO public.confirmed VALUES (m.id) $$;
CREATE TABLE handled (payload text);
CREATE FUNCTION handle(r outbox.record) RETURNS void LANGUAGE sql
AS $$ INSERT INTO public.handled VALUES (r.payload) $$;
SELECT outbox.set_topic('orders', 'results', result_timeout => '1 hour',
	on_confirmed => 'confirm(outbox.message)');
SELECT outbox.subscribe('inbound', 'handle(outbox.record)', reply_topic => 'replies');
EOS
my $beta = new_standby($alpha, 'beta', bootstrap => $kafka->bootstrap);
same_orders($beta, $alpha);

# ---------- what the tests share ----------

# A client of psql; returns its pid
sub client
{
	my ($node, $output, @args) = @_;

	return spawn_guarded({ stdout => $output },
		'psql', '-XqAt', '-d', $node->connstr('postgres'), @args);
}

sub query
{
	my ($node, $sql) = @_;
	return $node->safe_psql('postgres', $sql);
}

# The status of the message of an order; nothing if there is none to be seen
sub order_is
{
	my ($node, $order, $status, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_value($node, 'postgres',
		"SELECT status FROM outbox.message WHERE topic = 'orders' AND payload::jsonb ->> 'id' = '$order'",
		$status) and pass($name);
	return;
}

sub message_of
{
	my ($node, $order) = @_;

	return query($node,
		"SELECT id FROM outbox.message WHERE topic = 'orders' AND payload::jsonb ->> 'id' = '$order'");
}

# Wait until a message of the topic "plain" has that status
sub plain_is
{
	my ($node, $payload, $status, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_value($node, 'postgres',
		"SELECT status FROM outbox.message WHERE topic = 'plain' AND payload = '$payload'", $status)
	  and pass($name);
	return;
}

sub send_plain
{
	my ($node, $payload) = @_;
	return query($node, "SELECT outbox.send('plain', '$payload'::text)");
}

# The message ids of a topic's records, in their order
sub ids
{
	my ($topic) = @_;
	return map { $_->{header}{id} } $kafka->consume($topic);
}

# How many records of "plain" have that value
sub copies
{
	my ($value) = @_;
	return scalar(grep { $_->{value} eq $value } $kafka->consume('plain'));
}

# ---------- a standby ----------

subtest 'a standby' => sub {
	send_plain($alpha, 'first');
	plain_is($alpha, 'first', 'SENT', 'published by the primary');
	let_rest($alpha);
	send_plain($alpha, 'waits');
	$alpha->wait_for_catchup($beta, 'replay');
	plain_is($beta, 'waits', 'NEW', 'there is something to publish');
	has_no_workers($beta, 'a standby');
	foreach my $view (split /\n/, query($beta,
			"SELECT relname FROM pg_class WHERE relkind = 'v' AND relnamespace = 'outbox'::regnamespace"))
	{
		my ($status, $out, $err) = $beta->psql('postgres', "SELECT * FROM outbox.$view");

		is("$status $err", '0 ', "outbox.$view can be read");
	}
	is(copies('waits'), 0, 'and nothing is published from it');
	let_work($alpha);
	plain_is($alpha, 'waits', 'SENT', 'but from the primary');
};

# ---------- synchronous replication ----------

# A session that has placed an order and waits for the standby: the pids of
# client and backend
sub place_and_wait
{
	my ($customer) = @_;
	my $client = client($alpha, '/dev/null', '-c', "SELECT placed($customer)");
	my $backend = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND wait_event = 'SyncRep'";

	wait_for_value($alpha, 'postgres', "SELECT count(*) $backend", '1');
	return ($client, query($alpha, "SELECT pid $backend"));
}

sub order_of
{
	my ($customer) = @_;
	return query($alpha, "SELECT id FROM orders WHERE customer = $customer");
}

subtest 'a standby that does not answer' => sub {
	set_conf($alpha, synchronous_standby_names => 'beta');
	wait_for_value($alpha, 'postgres',
		'SELECT sync_state FROM pg_stat_replication', 'sync');
	cut_off($beta);

	my ($client, $backend) = place_and_wait(38);

	# What came after it shows that the publisher has been there.
	my $local = query($alpha, 'SET synchronous_commit = local; SELECT placed(39)');
	order_is($alpha, $local, 'SENT', 'synchronous_commit = local: published without the standby');
	is(scalar(ids('orders')), 1, 'a commit that waits for the standby is not published');
	is(order_of(38), '', 'and nobody sees it');

	query($alpha, "SELECT pg_cancel_backend($backend)");
	reap($client, 0);
	order_is($alpha, order_of(38), 'SENT', 'a wait that is cancelled: published without the standby');

	($client, $backend) = place_and_wait(40);
	kill('KILL', $backend);
	reap($client, 0);
	wait_for_value($alpha, 'postgres', 'SELECT count(*) FROM orders WHERE customer = 40', '1');
	order_is($alpha, order_of(40), 'SENT', 'a crash in the wait: published without the standby');
	is(query($beta, 'SELECT count(*) FROM orders'), '0', 'which knows none of them');
	follow($beta, $alpha);
};

my $service;    # pid
my @clients;
my $outputs = PostgreSQL::Test::Utils::tempdir;

# Statements of one client; what it prints are the ids of orders, each after
# its commit.
sub load
{
	my $sql = '';

	foreach (1 .. 20_000)
	{
		my $customer = 1 + int(rand(30));
		my $choice = rand();

		$sql .=
		    $choice < 0.8 ? "SELECT placed($customer);\n"
		  : $choice < 0.9 ? "BEGIN; SELECT place_doomed($customer); ROLLBACK;\n"
		  : "BEGIN; SAVEPOINT s; SELECT place_doomed($customer); ROLLBACK TO s;"
		  . " SELECT place($customer); COMMIT;\n";
		$sql .= "SELECT pg_sleep(0.005);\n";
	}
	return $sql;
}

sub start_clients
{
	foreach my $i (1 .. 3)
	{
		append_to_file("$outputs/$i.sql", load());
		push @clients, client($alpha, "$outputs/$i.out", '-f', "$outputs/$i.sql");
	}
	return;
}

# The orders whose commit was acknowledged to a client
sub acknowledged
{
	return map { -e $_ ? slurp_file($_) =~ /^([-0-9a-f]{36})$/gm : () }
	  map { "$outputs/$_.out" } 1 .. 3;
}

# As if the clock of the old primary had been ahead by some minutes
sub put_clock_forward
{
	query($alpha, <<'EOS');
INSERT INTO outbox.log (id, updated_at, attempts, segment, lane, status, topic)
	VALUES (outbox.message_id_at(now() + interval '10 minutes'), now(), 0, 0, 0, 'S', 'future');
SELECT outbox.adopt();
EOS
	send_plain($alpha, 'ahead');
	query($alpha, "DELETE FROM outbox.log WHERE topic = 'future'");
	return;
}

# The server dies while the broker has messages that it can't acknowledge.  A
# transaction that began long before has just committed.
sub die_while_publishing
{
	my $slow = $alpha->background_psql('postgres');

	$slow->query_safe('BEGIN; SELECT place(36)');
	start_clients();
	wait_until('the load runs', sub { acknowledged() > 300 });
	wait_for_value($alpha, 'postgres', 'SELECT count(*) > 100 FROM confirmed', 't');
	query($alpha, "BEGIN; SELECT place(32); PREPARE TRANSACTION 'kept'");
	query($alpha, "BEGIN; SELECT place(33, true); PREPARE TRANSACTION 'dropped'");
	push @clients, client($alpha, '/dev/null', '-c', 'BEGIN', '-c', 'SELECT place(31, true)',
		'-c', 'SELECT pg_sleep(600)');
	wait_for_value($alpha, 'postgres',
		"SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'", '1');

	$kafka->pause;
	wait_for_value($alpha, 'postgres',
		"SELECT count(*) > 100 FROM outbox.message WHERE status = 'NEW'", 't');
	wait_for_value($alpha, 'postgres',
		"SELECT bool_or(state = 'publishing') FROM outbox.worker WHERE kind = 'publisher'", 't');
	$slow->query_safe('COMMIT');
	$slow->quit;
	kill9_server($alpha);
	$kafka->resume;
	reap($_, 0) foreach (@clients);
	return;
}

subtest 'a synchronous standby takes over' => sub {
	put_clock_forward();
	$service = spawn_guarded({}, order_service($kafka));
	die_while_publishing();

	# Resting, it can be compared with what was there.
	set_conf($beta, 'outbox.enabled' => 'off');
	promote($beta);
	my %new = map { $_ => 1 } split /\n/,
	  query($beta, "SELECT id FROM outbox.message WHERE status = 'NEW'");
	my %orders = map { $_ => 1 } split /\n/, query($beta, 'SELECT id FROM orders');
	my @acknowledged = acknowledged();
	my @lost = grep { !$orders{$_} } @acknowledged;

	cmp_ok(scalar(@acknowledged), '>', 300, 'many orders were placed');
	is(scalar(@lost), 0, 'every acknowledged order is there');

	let_work($beta);
	wait_for_value($beta, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE status = 'NEW'", '0');
	is(query($beta, 'SELECT parked IS NULL FROM outbox.stat'), 't', 'it is no copy');
	query($beta, "COMMIT PREPARED 'kept'");
	query($beta, "ROLLBACK PREPARED 'dropped'");
	wait_for_value($beta, 'postgres', 'SELECT count(*) FROM orders WHERE customer = 32', '1');
	wait_for_value($beta, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = 'orders' AND status <> 'CONFIRMED'", '0')
	  and pass('all messages end CONFIRMED');
	query($beta, "DELETE FROM outbox.log WHERE topic <> 'orders'");
	my $counts = check_orders($beta, $kafka);

	my %seen;
	$seen{$_}++ foreach (ids('orders'));
	my @repeated = grep { $seen{$_} > 1 } keys %seen;
	is(scalar(grep { !$new{$_} } @repeated), 0, 'only what was under way came again');
	is(scalar(grep { $_ > 2 } values %seen), 0, 'and once');
	cmp_ok(scalar(@repeated), '>', 0, 'something was under way');
	note("$counts->{orders} orders, $counts->{copies} copies, " . keys(%new) . ' NEW');
	is(query($beta, 'SELECT count(*), count(DISTINCT id) FROM confirmed'),
		"$counts->{orders}|$counts->{orders}", 'on_confirmed took effect once for each');

	my ($last) = sort { $b cmp $a } keys %seen;
	cmp_ok(send_plain($beta, 'newer'), 'gt', $last, 'ids go on above all others');
	cmp_ok(query($beta, "SELECT outbox.message_time('$last') > now() + interval '5 minutes'"),
		'eq', 't', 'though its clock is behind');
	reap($service, 'TERM');
};

# ---------- asynchronous replication ----------

# Another sender's record, with an id of its own; returns that
my $ninbound = 0;

sub produce_inbound
{
	my ($value) = @_;
	my $id = sprintf('5b1f1f4b-93b4-4b5e-bf20-%012x', $ninbound++);

	$kafka->produce('inbound', { key => $value, value => $value, headers => [ [ 'id', $id ] ] });
	return $id;
}

sub handled_is
{
	my ($node, $expected, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_value($node, 'postgres',
		q(SELECT string_agg(payload, ' ' ORDER BY payload) FROM handled), $expected) and pass($name);
	return;
}

# How many replies there are to a record
sub replies_are
{
	my ($id, $n, $name) = @_;
	my @replies = ();

	wait_until($name, sub {
		@replies = grep { $_->{header}{reply_to_message_id} eq $id } $kafka->consume('replies');
		return @replies >= $n;
	});
	is(scalar(@replies), $n, $name);
	return;
}

sub confirmed_is
{
	my ($node, $id, $n, $name) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	wait_for_value($node, 'postgres', "SELECT count(*) FROM confirmed WHERE id = '$id'", $n)
	  and pass($name);
	return;
}

my %message;    # id by name
my %record;

subtest 'the old primary follows' => sub {
	rewind($alpha, $beta);
	has_no_workers($alpha, 'the old primary');
	is(query($alpha, 'SELECT count(*) FROM orders'), query($beta, 'SELECT count(*) FROM orders'),
		'it has what the new one has');
};

subtest 'what does not reach the standby' => sub {
	my $shared = query($beta, 'SELECT placed(34)');

	$record{one} = produce_inbound('one');
	order_is($beta, $shared, 'SENT', 'an order is published');
	handled_is($beta, 'one', 'a record is handled');
	replies_are($record{one}, 1, 'and answered');
	wait_for_value($beta, 'postgres', "SELECT count(*) FROM outbox.message WHERE status = 'NEW'", '0');
	let_rest($beta);
	$message{unmarked} = send_plain($beta, 'unmarked');
	$beta->wait_for_catchup($alpha, 'replay');
	cut_off($alpha);
	let_work($beta);

	my $phantom = query($beta, 'SELECT placed(35)');
	plain_is($beta, 'unmarked', 'SENT', 'a message is marked SENT');
	order_is($beta, $phantom, 'SENT', 'another order is published');
	$message{shared} = message_of($beta, $shared);
	$message{phantom} = message_of($beta, $phantom);
	$kafka->produce('results', map { { key => $message{$_}, value => 'SUCCESS' } } qw(shared phantom));
	confirmed_is($beta, $message{$_}, 1, "on_confirmed of the $_ one") foreach (qw(shared phantom));
	$record{two} = produce_inbound('two');
	handled_is($beta, 'one two', 'a record is handled');
	replies_are($record{two}, 1, 'and answered');

	plain_is($alpha, 'unmarked', 'NEW', 'the standby knows nothing of the mark');
	confirmed_is($alpha, $message{shared}, 0, 'nor of the result');
	is(message_of($alpha, $phantom), '', 'nor of the other order');
	handled_is($alpha, 'one', 'nor of the record');
};

subtest 'an asynchronous standby takes over' => sub {
	my $unknown = query($alpha, 'SELECT results_unknown FROM outbox.stat');

	promote($alpha);
	wait_for_value($alpha, 'postgres',
		"SELECT count(*) FROM outbox.worker WHERE kind <> 'launcher' AND pid IS NOT NULL", '2')
	  and pass('the workers start by themselves');
	plain_is($alpha, 'unmarked', 'SENT', 'what has lost its mark is published');
	is(scalar(grep { $_ eq $message{unmarked} } ids('plain')), 2, 'again, with the same id');
	confirmed_is($alpha, $message{shared}, 1, 'a result that was lost is applied, once');
	wait_for_value($alpha, 'postgres', 'SELECT results_unknown FROM outbox.stat', $unknown + 1)
	  and pass('one for a message that was lost is counted as unknown');
	is(scalar(grep { $_ eq $message{phantom} } ids('orders')), 1, 'but Kafka has that message');
	is(query($alpha, "SELECT count(*) FROM outbox.message WHERE id = '$message{phantom}'"),
		'0', 'which nobody here knows');
	handled_is($alpha, 'one two', 'a record whose effects were lost is handled, once');
	replies_are($record{one}, 1, 'what was not lost is not answered again');
	replies_are($record{two}, 2, 'the other one is, for the same record');
};

# ---------- two primaries ----------

subtest 'the old primary is still alive' => sub {
	$record{three} = produce_inbound('three');
	handled_is($_, 'one three two', 'both handle the same record') foreach ($alpha, $beta);
	replies_are($record{three}, 2, 'and both answer');
	$message{stray} = send_plain($beta, 'stray');
	plain_is($beta, 'stray', 'SENT', 'the old one publishes what is captured there');

	let_rest($beta);
	send_plain($beta, 'fenced');
	is(join(' ', bridge_pids($beta)), '', 'outbox.enabled = off ends that');
	my $after = send_plain($alpha, 'after');
	plain_is($alpha, 'after', 'SENT', 'the new one goes on');
	is(copies('fenced'), 0, 'the old one publishes nothing more');
	is(query($beta, "SELECT status FROM outbox.message WHERE payload = 'fenced'"),
		'NEW', 'though it captures');

	my %lost = map { $_ => 1 } @message{qw(phantom stray)};
	is(scalar(grep { $lost{$_} } split /\n/, query($alpha, 'SELECT id FROM outbox.message')),
		0, 'no id of what was lost is used again');
	is(query($alpha, 'SELECT max(id::text) FROM outbox.message'), $after, 'and ids rise');
};

subtest 'and follows' => sub {
	$beta->stop('fast');
	rewind($beta, $alpha);
	has_no_workers($beta, 'it');
	is(query($beta, "SELECT count(*) FROM outbox.message WHERE payload IN ('stray', 'fenced')"),
		'0', 'it has lost what was its own');

	# a switchover, in which nothing is lost
	send_plain($alpha, 'before');
	plain_is($alpha, 'before', 'SENT', 'published');
	$alpha->stop('fast');
	promote($beta);
	let_work($beta);
	send_plain($beta, 'last');
	plain_is($beta, 'last', 'SENT', 'it goes on when it takes over');
	is(copies('before'), 1, 'a switchover repeats nothing');
	confirmed_is($beta, $message{shared}, 1, 'every effect is there once');
	handled_is($beta, 'one three two', 'and every record');
	$beta->stop('fast');
};

$kafka->stop;
done_testing();
