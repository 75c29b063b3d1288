# Publishing: what is committed, and nothing else, goes out, in order, and as
# the wire has it.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $kafka = OutboxTest::Kafka->new;
$kafka->start;
my $node = new_outbox_node(
	'main',
	bootstrap => $kafka->bootstrap,
	extension => ['postgres']);

# The values of a topic's records, in order within each partition
sub values_of
{
	my ($topic) = @_;
	return map { $_->{value} } $kafka->consume($topic);
}

sub wait_for_sent
{
	my ($topic, $n) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'SENT'",
		$n);
}

# The last id of what was sent so far
sub send_one
{
	my ($topic, $value) = @_;
	return $node->safe_psql('postgres',
		"SELECT outbox.send('$topic', '$value'::text, 'k')");
}

# Read a topic's records and check the order of each key: their values are
# "key n", n = 1, 2, 3... for each key; a copy of what came before is allowed if
# it is asked for.  Returns the number of records.  Too many for decoding JSON.
sub check_key_order
{
	my ($topic, $copies, $name) = @_;
	my (%last, %seen, @wrong);
	my $records = 0;

	foreach my $line (split /\n/, $kafka->ktool('consume', $topic))
	{
		my ($key, $value_key, $n) = $line =~ /"key": "([^"]*)", "value": "(\S+) (\d+)"/
		  or die "unexpected record: $line";

		$records++;
		push @wrong, "$key has $value_key" if $key ne $value_key;
		if ($n == ($last{$key} // 0) + 1)
		{
			$last{$key} = $n;
		}
		elsif (!$copies || $n > ($last{$key} // 0))
		{
			push @wrong, "$key: $n after " . ($last{$key} // 0);
		}
	}
	splice(@wrong, 20) if @wrong > 20;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is_deeply(\@wrong, [], $name);
	return $records;
}

subtest 'atomic' => sub {
	$kafka->create_topic('atomic', 1);
	$node->safe_psql('postgres', q(
		CREATE TABLE orders (id int PRIMARY KEY, note text);
		SELECT outbox.attach('orders', 'atomic', columns => '{note}');
		INSERT INTO orders VALUES (1, 'alone');
		BEGIN;
		INSERT INTO orders VALUES (2, 'rolled back');
		SELECT outbox.send('atomic', 'rolled back'::text);
		ROLLBACK;
		BEGIN;
		INSERT INTO orders VALUES (3, 'before');
		SAVEPOINT a;
		INSERT INTO orders VALUES (4, 'rolled back');
		SAVEPOINT b;
		INSERT INTO orders VALUES (5, 'rolled back');
		RELEASE b;
		ROLLBACK TO a;
		INSERT INTO orders VALUES (6, 'after');
		RELEASE a;
		COMMIT;
		DO $$
		BEGIN
			INSERT INTO orders VALUES (7, 'outer');
			BEGIN
				INSERT INTO orders VALUES (8, 'rolled back');
				INSERT INTO orders VALUES (1, 'rolled back');
			EXCEPTION WHEN unique_violation THEN
				INSERT INTO orders VALUES (9, 'handler');
			END;
		END
		$$;
	));
	$node->psql('postgres', q(
		BEGIN;
		INSERT INTO orders VALUES (10, 'rolled back');
		SELECT 1 / 0;
		COMMIT));
	$node->psql('postgres', q(INSERT INTO orders VALUES (11, 'rolled back'), (11, 'rolled back')));
	$node->safe_psql('postgres', q(INSERT INTO orders VALUES (12, 'last')));

	# What is captured last is published last; all was over before it.
	wait_for_value($node, 'postgres',
		q(SELECT status FROM outbox.message WHERE payload = '{"note":"last"}'), 'SENT');
	is_deeply(
		[ values_of('atomic') ],
		[ map { qq({"note":"$_"}) } qw(alone before after outer handler last) ],
		'a record for what was committed, and only for that');
	is( $node->safe_psql('postgres', q(SELECT count(*), count(*) FILTER (WHERE status = 'SENT')
			FROM outbox.message WHERE topic = 'atomic')),
		'6|6', 'and a message');
};

subtest 'order by key' => sub {
	$kafka->create_topic('ordered', 4);
	$node->safe_psql('postgres', q(
		CREATE TABLE counter (key text PRIMARY KEY, n int NOT NULL);
		INSERT INTO counter SELECT 'key' || i, 0 FROM generate_series(1, 10) AS i;
		CREATE FUNCTION count_up() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN
			PERFORM outbox.send('ordered', format('%s %s', NEW.key, NEW.n), NEW.key);
			RETURN NULL;
		END
		$$;
		CREATE TRIGGER count_up AFTER UPDATE ON counter
			FOR EACH ROW EXECUTE FUNCTION count_up();
	));

	# within one transaction: the keys in turn, each many times
	$node->safe_psql('postgres', q(
		DO $$
		BEGIN
			FOR i IN 1 .. 100 LOOP
				UPDATE counter SET n = n + 1;
			END LOOP;
		END
		$$));

	# across transactions of several sessions: the row's lock puts them in order
	my $random = 'key' . q(' || :key);
	$node->pgbench(
		'--no-vacuum --client=6 --transactions=100',
		0,
		[qr{actually processed: 600/600}],
		[qr{^$}],
		'sessions that update the same rows',
		{
			'010_order' => qq(
				\\set key random(1, 10)
				\\set ms random(0, 4)
				BEGIN;
				UPDATE counter SET n = n + 1 WHERE key = '$random;
				\\sleep :ms ms
				COMMIT;
			),
			'010_abort' => qq(
				\\set key random(1, 10)
				BEGIN;
				UPDATE counter SET n = n + 1 WHERE key = '$random;
				ROLLBACK;
			)
		});
	my $total = $node->safe_psql('postgres', 'SELECT sum(n) FROM counter');

	cmp_ok($total, '>', 1000, 'some were committed');
	wait_for_sent('ordered', $total);
	is(check_key_order('ordered', 0, 'each key is in order, with no gap'),
		$total, 'nothing is missing, and nothing there twice');
};

subtest 'late commits' => sub {
	$kafka->create_topic('late', 1);
	my $before = send_one('late', 'before');
	my $late = $node->background_psql('postgres');
	$late->set_query_timer_restart;
	my $pid = $late->query_safe('SELECT pg_backend_pid()');

	$late->query_safe('BEGIN');
	my $id = $late->query_safe(q(SELECT outbox.send('late', 'late 1'::text, 'k')));
	my $next = send_one('late', 'next');
	$late->query_safe(q(SAVEPOINT s; SELECT outbox.send('late', 'rolled back'::text, 'k'); ROLLBACK TO s));
	$late->query_safe(q(SELECT outbox.send('late', 'late 2'::text, 'k')));
	wait_for_sent('late', 2);
	cmp_ok($id, 'lt', $next, 'a transaction took its id before one that is published');

	is( $node->safe_psql('postgres', q(SELECT oldest_transaction_pid,
			oldest_transaction_age BETWEEN '0' AND '1 hour' FROM outbox.stat)),
		"$pid|t", 'outbox.stat shows it');
	wait_for_value($node, 'postgres',
		"SELECT bool_and(cursor > '$before' AND cursor <= '$id') FROM outbox.lane", 't');
	is_deeply([ values_of('late') ], [ 'before', 'next' ], 'nothing of it is published');

	my $last = send_one('late', 'last');
	wait_for_sent('late', 3);
	$late->query_safe('COMMIT');
	wait_for_sent('late', 5);
	is_deeply(
		[ values_of('late') ],
		[ 'before', 'next', 'last', 'late 1', 'late 2' ],
		'its messages go out when it has committed, in their order');
	is( $node->safe_psql('postgres', 'SELECT oldest_transaction_pid FROM outbox.stat'),
		'', 'outbox.stat shows it no more');
	wait_for_value($node, 'postgres',
		"SELECT bool_and(cursor > '$last') FROM outbox.lane", 't');

	# one that rolls back owes nothing
	$late->query_safe('BEGIN');
	$late->query_safe(q(SELECT outbox.send('late', 'rolled back'::text, 'k')));
	$late->query_safe('ROLLBACK');
	$late->quit;
	send_one('late', 'end');
	wait_for_sent('late', 6);
	is((values_of('late'))[-1], 'end', 'one that is rolled back leaves nothing');
};

subtest 'prepared transactions' => sub {
	my $prepare = sub {
		my ($name) = @_;
		return $node->safe_psql('postgres', qq(
			BEGIN;
			SELECT outbox.send('prepared', '$name'::text, 'k');
			PREPARE TRANSACTION '$name';
		));
	};

	$kafka->create_topic('prepared', 1);
	my $committed = $prepare->('committed');
	$prepare->('rolled back');
	my $crashed = $prepare->('crashed');
	my $other = send_one('prepared', 'other');
	wait_for_sent('prepared', 1);
	wait_for_value($node, 'postgres',
		"SELECT bool_and(cursor > '$other') FROM outbox.lane", 't');
	is_deeply([ values_of('prepared') ], ['other'],
		'the sweep has passed them by, and published nothing');

	$node->safe_psql('postgres', q(COMMIT PREPARED 'committed'; ROLLBACK PREPARED 'rolled back'));
	wait_for_sent('prepared', 2);
	is_deeply([ values_of('prepared') ], [ 'other', 'committed' ],
		'COMMIT PREPARED publishes');
	send_one('prepared', 'again');
	wait_for_sent('prepared', 3);

	$node->stop('immediate');
	start_again($node);
	my $later = send_one('prepared', 'later');
	wait_for_sent('prepared', 4);
	wait_for_value($node, 'postgres',
		"SELECT bool_and(cursor > '$later') FROM outbox.lane", 't');
	$node->safe_psql('postgres', q(COMMIT PREPARED 'crashed'));
	wait_for_sent('prepared', 5);
	is_deeply(
		[ values_of('prepared') ],
		[ 'other', 'committed', 'again', 'later', 'crashed' ],
		'also after a crash; ROLLBACK PREPARED leaves nothing');
	is($node->safe_psql('postgres', 'SELECT count(*) FROM outbox.prepared'),
		0, 'no range is left');
};

# Marked where they were read, or by SQL, if the segment has an index that isn't
# ours
subtest 'attempts end at the largest number' => sub {
	$kafka->create_topic('often', 1);
	foreach my $way ('', 'CREATE INDEX often_marked ON outbox.log_0 (attempts)')
	{
		$node->safe_psql('postgres', "$way; SELECT outbox.pause('often')");
		send_one('often', $way);
		$node->safe_psql('postgres', q(
			UPDATE outbox.log SET attempts = 32767 WHERE topic = 'often' AND status = 'N';
			SELECT outbox.resume('often')));
		wait_for_sent('often', $way eq '' ? 1 : 2);
	}
	is($node->safe_psql('postgres',
			"SELECT min(attempts), max(attempts) FROM outbox.message WHERE topic = 'often'"),
		'32767|32767', 'and go no further');
	$node->safe_psql('postgres', 'DROP INDEX outbox.often_marked');
};

subtest 'on the wire' => sub {
	$kafka->create_topic('plain', 1);
	$kafka->create_topic('asking', 7);
	$kafka->create_topic('answers', 1);
	$node->safe_psql('postgres', q(SELECT outbox.set_topic('asking', 'answers')));

	my @ids = split /\n/, $node->safe_psql('postgres', <<'EOQ');
SELECT outbox.send('plain', '{"a": [1, null]}'::jsonb, 'key');
SELECT outbox.send('plain', E'text \u00e9\n'::text);
SELECT outbox.send('plain', '\x00ff00fe'::bytea, '');
SELECT outbox.send('plain', ''::text, E'k\u00e9');
SELECT outbox.send('plain', NULL::text, 'gone');
SELECT outbox.send('plain', 'headers'::text, 'key', E'{"string": "\u00e9 \\"x\\"",
	"list": ["b", null, "a", 7, true], "none": null, "number": 12.50, "big": 123456789012345678901234567890,
	"bool": false, "empty": "", "no": [], "traceparent": "00-1-2-03"}'::jsonb);
EOQ
	wait_for_sent('plain', 6);
	my @records = $kafka->consume('plain');
	is_deeply([ map { $_->{header}{id} } @records ],
		\@ids, 'header id is the message id');
	is_deeply(
		[ map { [ $_->{key}, $_->{value} ] } @records ],
		[
			[ 'key', '{"a": [1, null]}' ],
			[ $ids[1], "text \xc3\xa9\n" ],
			[ '', "\0\xff\0\xfe" ],
			[ "k\xc3\xa9", '' ],
			[ 'gone', undef ],
			[ 'key', 'headers' ]
		],
		'key and value');
	is_deeply(
		[ map { $_->{headers} } @records[ 0 .. 4 ] ],
		[ map { [ [ 'id', $_ ] ] } @ids[ 0 .. 4 ] ],
		'no other header');

	my %headers;
	push @{ $headers{ $_->[0] } }, $_->[1] foreach (@{ $records[5]{headers} });
	is_deeply(
		\%headers,
		{
			id => [ $ids[5] ],
			string => ["\xc3\xa9 \"x\""],
			list => [ 'b', undef, 'a', '7', 'true' ],
			none => [undef],
			number => ['12.50'],
			big => ['123456789012345678901234567890'],
			bool => ['false'],
			empty => [''],
			traceparent => ['00-1-2-03']
		},
		"the application's headers");

	# Java's hash of the keys, as its own tests have it
	my %murmur2 = (
		'kafka' => 0xd067cf64, 'giberish123456789' => 0x8f552b0c,
		'1234' => 0x9fc97b14, '234' => 0xe7c009ca);
	my %id;
	$id{$_} = $node->safe_psql('postgres',
		"SELECT outbox.send('asking', 'x'::text, '$_', '{\"h\": \"1\"}')")
	  foreach (sort keys %murmur2);
	wait_for_sent('asking', scalar(keys %murmur2));
	my %record = map { $_->{key} => $_ } $kafka->consume('asking');
	foreach my $key (sort keys %murmur2)
	{
		(my $hex = $id{$key}) =~ s/-//g;

		is($record{$key}{partition}, ($murmur2{$key} & 0x7fffffff) % 7,
			"the partition of $key");
		is_deeply(
			$record{$key}{headers},
			[
				[ 'id', $id{$key} ],
				[ 'kafka_correlationId', pack('H*', $hex) ],
				[ 'kafka_replyTopic', 'answers' ],
				[ 'h', '1' ]
			],
			'where a result is expected, the headers say so');
	}

	# what capture adds
	$kafka->create_topic('captured', 1);
	$node->safe_psql('postgres', q(
		CREATE TABLE item (id int, name text);
		SELECT outbox.attach('item', 'captured', key => 'name', events => '{INSERT,UPDATE,DELETE}',
			headers => '{"source": "shop"}');
		INSERT INTO item VALUES (1, 'x');
		UPDATE item SET id = 2;
		DELETE FROM item;
	));
	wait_for_sent('captured', 3);
	is_deeply(
		[ map { [ $_->{key}, $_->{value}, $_->{header}{op}, $_->{header}{source} ] }
			  $kafka->consume('captured') ],
		[
			[ 'x', '{"id":1,"name":"x"}', 'c', 'shop' ],
			[ 'x', '{"id":2,"name":"x"}', 'u', 'shop' ],
			[ 'x', '{"id":2,"name":"x"}', 'd', 'shop' ]
		],
		'a captured row');
};

subtest 'bulk' => sub {
	my $n = 50_000;

	$kafka->create_topic($_, 4) foreach (qw(bulk bulk-answers));
	$node->safe_psql('postgres', q(
		CREATE TABLE bulk (id bigint, key text, note text);
		SELECT outbox.set_topic('bulk', 'bulk-answers');
		SELECT outbox.attach('bulk', 'bulk', key => 'key', columns => '{note}')));
	$node->safe_psql('postgres', q(SELECT pg_stat_reset()));
	$node->safe_psql('postgres', qq(
		INSERT INTO bulk SELECT i, 'key' || i % 100, format('%s %s', 'key' || i % 100, (i + 99) / 100)
		FROM generate_series(1, $n) AS i));
	wait_for_sent('bulk', $n);

	# A result that comes before the mark would save one of the two updates.
	my $service = $kafka->start_service('bulk', 'bulk-answers', '--by-header');
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM outbox.message WHERE topic = 'bulk' AND status IN ('CONFIRMED', 'FAILED')), $n);
	$kafka->stop_service($service);

	my (%ids, %last, %partition, @wrong);
	my $records = 0;
	foreach my $line (split /\n/, $kafka->ktool('consume', 'bulk'))
	{
		my ($partition, $key, $value, $order, $id) = $line =~
		  /"partition": (\d+),.*"key": "(\w+)", "value": "\{\\"note\\":\\"(\w+) (\d+)\\"\}", .*\["id", "([^"]+)"\]/
		  or die "unexpected record: $line";

		$records++;
		$ids{$id} = 1;
		push @wrong, "$key: $value" if $key ne $value;
		push @wrong, "$key: $order" if $order != ($last{$key} // 0) + 1;
		push @wrong, "$key: $partition" if $partition != ($partition{$key} // $partition);
		$last{$key} = $order;
		$partition{$key} = $partition;
	}
	splice(@wrong, 20) if @wrong > 20;
	is("$records records of " . keys(%ids) . ' messages', "$n records of $n messages",
		'all are published exactly once');
	is_deeply(\@wrong, [], 'in the order of their keys');
	is( $node->safe_psql('postgres',
			q(SELECT DISTINCT attempts FROM outbox.message WHERE topic = 'bulk')),
		1, 'with one attempt each');

	# both status updates; the statistics of a session come a little later
	my $updates = 2 * $n;
	wait_for_value($node, 'postgres',
		"SELECT sum(n_tup_upd) >= $updates FROM pg_stat_user_tables
		 WHERE schemaname = 'outbox' AND relname ~ '^log_'", 't');
	my ($updated, $hot) = split /\|/, $node->safe_psql('postgres',
		"SELECT sum(n_tup_upd), sum(n_tup_hot_upd) FROM pg_stat_user_tables
		 WHERE schemaname = 'outbox' AND relname ~ '^log_'");
	cmp_ok($hot / $updated, '>', 0.9, "nearly all updates were HOT ($hot)");
	is( $node->safe_psql('postgres', q(
			SELECT DISTINCT pg_get_indexdef(i.indexrelid, 1, false) || ' ' || i.indnatts || ' '
				|| (i.indpred IS NULL) || ' ' || i.indisprimary
			FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indrelid
			WHERE c.relnamespace = 'outbox'::regnamespace AND c.relname ~ '^log')),
		'id 1 true true', 'no index but the primary key');
	wait_for_value($node, 'postgres',
		'SELECT bool_and(cursor > (SELECT id FROM outbox.log ORDER BY id DESC LIMIT 1)) FROM outbox.lane', 't');
};

subtest 'flushed before it is published' => sub {
	$kafka->create_topic('durable', 1);
	set_conf($node,
		'wal_writer_delay' => '10s',
		'outbox.ack_timeout' => '5min');
	send_one('durable', 'first');
	wait_for_sent('durable', 1);

	# Nobody but the publisher flushes WAL from here on; and it can't finish
	# its batch, so that it isn't the mark that flushes.
	my ($walwriter) = split /\n/, $node->safe_psql('postgres',
		q(SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'));
	my $session = $node->background_psql('postgres');
	$session->set_query_timer_restart;
	$session->query_safe('SET synchronous_commit = off');
	kill('STOP', $walwriter);
	$kafka->pause;
	my $id = $session->query_safe(q(SELECT outbox.send('durable', 'second'::text, 'k')));
	my $lsn = $session->query_safe('SELECT pg_current_wal_insert_lsn()');
	wait_for_value($node, 'postgres', q(SELECT count(*) FROM pg_stat_activity
		WHERE backend_type LIKE 'outbox publisher%' AND query = 'publishing'), 1);
	# The flush is the first thing in that state.
	wait_for_value($node, 'postgres',
		"SELECT pg_current_wal_flush_lsn() >= '$lsn'", 't', 30);
	is( $node->safe_psql('postgres', "SELECT status FROM outbox.message WHERE id = '$id'"),
		'NEW', 'and it is not marked yet');

	# Writers don't pay for that: the commit of one leaves WAL to be flushed.
	ok( wait_until(undef, sub {
			$session->query_safe(q(SELECT outbox.send('durable', 'third'::text, 'k')));
			return $session->query_safe(
				'SELECT pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()') eq 't';
		}, 30),
		'a commit with synchronous_commit = off does not flush');

	# A crash of the server in the moment after: who saw the record finds the
	# message.
	kill9_server($node);
	$kafka->resume;
	$session->{run}->kill_kill;
	start_again($node);
	is( $node->safe_psql('postgres', "SELECT count(*) FROM outbox.message WHERE id = '$id'"),
		1, 'the message survives a crash');
	wait_for_value($node, 'postgres',
		q(SELECT count(*) FROM outbox.message WHERE topic = 'durable' AND status <> 'SENT'), 0);
	my %records = map { $_->{header}{id} => 1 } $kafka->consume('durable');
	my %messages = map { $_ => 1 } split /\n/, $node->safe_psql('postgres',
		q(SELECT id FROM outbox.message WHERE topic = 'durable'));
	is_deeply(\%records, \%messages, 'no record without a message');
};

subtest 'kill -9 of a publisher' => sub {
	my $n = 10_000;

	$kafka->create_topic('killed', 4);
	set_conf($node, 'outbox.ack_timeout' => '5min');
	$node->safe_psql('postgres', q(SELECT outbox.send('killed', 'key0 1'::text, 'key0')));
	wait_for_sent('killed', 1);

	# in the middle of a batch
	$kafka->pause;
	$node->safe_psql('postgres', qq(
		SELECT count(outbox.send('killed', format('%s %s', 'key' || i % 50, i / 50 + 1), 'key' || i % 50))
		FROM generate_series(1, $n - 1) AS i));
	my $pid = wait_until('the publisher has a batch', sub {
		return $node->safe_psql('postgres', q(SELECT pid FROM pg_stat_activity
			WHERE backend_type LIKE 'outbox publisher%' AND query = 'publishing'));
	});
	my ($bridge) = bridge_pids($node);
	kill('KILL', $pid);
	ok(wait_for_exit($bridge), 'its bridge ends with it');
	$kafka->resume;
	wait_for_sent('killed', $n);
	my $records = check_key_order('killed', 1, 'nothing is lost, and the first copies are in order');

	note("$records records of $n messages");
	# no more than the batch that was under way
	cmp_ok($records, '<=', $n + 4000, 'few are there twice');
};

$node->stop;
done_testing();
