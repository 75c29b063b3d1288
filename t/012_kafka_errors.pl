# What becomes of a message for each error that Kafka can answer with.

use strict;
use warnings;

use OutboxTest::Cluster;
use OutboxTest::Kafka;
use OutboxTest::Mock;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

use constant { PRODUCE => 0, INIT_PRODUCER_ID => 22 };

my $kafka = OutboxTest::Kafka->new(authorizer => 1);
$kafka->start(wait => 0);
my $mock = OutboxTest::Mock->new;
$mock->start;
my $node = new_outbox_node(
	'main',
	bootstrap => $mock->bootstrap,
	conf => "outbox.ack_timeout = '60s'",
	extension => ['postgres']);
my $broker = $mock;

sub send_one
{
	my ($topic, $value) = @_;
	return $node->safe_psql('postgres',
		"SELECT outbox.send('$topic', '$value'::text, 'k')");
}

# Several of them in one transaction: their values are 1, 2, 3...
sub send_many
{
	my ($topic, $n) = @_;
	return split /\n/, $node->safe_psql('postgres',
		"SELECT outbox.send('$topic', i::text, 'k') FROM generate_series(1, $n) AS i");
}

sub wait_for_status
{
	my ($id, $status) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT status FROM outbox.message WHERE id = '$id'", $status);
}

sub wait_for_sent
{
	my ($topic, $n) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT count(*) FROM outbox.message WHERE topic = '$topic' AND status = 'SENT'",
		$n);
}

sub wait_for_state
{
	my ($topic, $state) = @_;

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return wait_for_value($node, 'postgres',
		"SELECT state FROM outbox.topic WHERE topic = '$topic'", $state);
}

sub values_of
{
	my ($topic) = @_;
	return map { $_->{value} } $broker->consume($topic);
}

sub publisher
{
	my ($columns) = @_;
	return $node->safe_psql('postgres',
		"SELECT $columns FROM outbox.worker WHERE kind = 'publisher'");
}

# A topic of its own for each test, and what the log has said since
my ($number, $log_start) = (0, 0);

sub new_topic
{
	my ($name, %config) = @_;
	my $topic = lc $name . '-' . $number++;

	$broker->create_topic($topic, 1, %config);
	$log_start = -s $node->logfile;
	return $topic;
}

sub log_since
{
	return slurp_file($node->logfile, $log_start);
}

# That whatever was wrong with one topic is over for another
sub check_others
{
	my ($name) = @_;
	my $id = send_one('others', $name);

	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(wait_for_status($id, 'SENT'), $name);
	return;
}

$mock->create_topic('others', 1);
check_others('before anything is wrong');

subtest 'librdkafka tries again by itself' => sub {
	my %codes = (
		LEADER_NOT_AVAILABLE => 5, NOT_LEADER_FOR_PARTITION => 6,
		REQUEST_TIMED_OUT => 7, NOT_ENOUGH_REPLICAS => 19,
		NOT_ENOUGH_REPLICAS_AFTER_APPEND => 20, KAFKA_STORAGE_ERROR => 56,
		UNKNOWN_TOPIC_OR_PART => 3);

	foreach my $name (sort keys %codes)
	{
		my $topic = new_topic($name);

		$mock->push_errors(PRODUCE, $codes{$name}, $codes{$name});
		send_many($topic, 3);
		wait_for_sent($topic, 3);
		is( $node->safe_psql('postgres',
				"SELECT max(attempts), max(error) FROM outbox.message WHERE topic = '$topic'"),
			'1|', "$name: SENT, in one attempt");
		is_deeply([ values_of($topic) ], [ 1 .. 3 ], "$name: once, and in order");
		unlike(log_since(), qr/"$topic" is held/, "$name: the topic was not held");
	}
};

subtest 'it is there already' => sub {
	my $topic = new_topic('duplicate');

	$mock->push_errors(PRODUCE, 46);
	my $id = send_one($topic, 'x');
	wait_for_status($id, 'SENT');
	is( $node->safe_psql('postgres',
			"SELECT attempts, error FROM outbox.message WHERE id = '$id'"),
		'1|', 'DUPLICATE_SEQUENCE_NUMBER: SENT');
	is(scalar(values_of($topic)), 0, 'and not sent again');
};

subtest 'a request is turned down for good' => sub {
	my %codes = (
		MSG_SIZE_TOO_LARGE => 10, RECORD_LIST_TOO_LARGE => 18,
		UNSUPPORTED_FOR_MESSAGE_FORMAT => 43, POLICY_VIOLATION => 44, INVALID_RECORD => 87);

	foreach my $name (sort keys %codes)
	{
		# Nobody knows which of its records was to blame: each goes again, alone.
		my $topic = new_topic($name);

		$mock->push_errors(PRODUCE, $codes{$name});
		send_many($topic, 20);
		wait_for_sent($topic, 20);
		is_deeply([ values_of($topic) ], [ 1 .. 20 ], "$name, together: SENT, in order");

		$mock->push_errors(PRODUCE, $codes{$name}, $codes{$name});
		my $id = send_one($topic, 'bad');
		wait_for_status($id, 'DEAD');
		like( $node->safe_psql('postgres',
				"SELECT attempts, error FROM outbox.message WHERE id = '$id'"),
			qr/^0\|$name: /, "$name, alone: DEAD");
		like(log_since(), qr/a message for topic "$topic" is dead: $name: .*\n.*DETAIL: .*$id/,
			"$name: the log says so");
		unlike(log_since(), qr/"$topic" is held/, "$name: the topic was not held");
		wait_for_status(send_one($topic, 'next'), 'SENT');
		is((values_of($topic))[-1], 'next', "$name: what follows goes out");
	}
	is($node->safe_psql('postgres', 'SELECT dead FROM outbox.stat'),
		scalar(keys %codes), 'outbox.stat counts the dead');
	like( $node->safe_psql('postgres', 'SELECT last_error FROM outbox.stat'),
		qr/^UNSUPPORTED_FOR_MESSAGE_FORMAT: /, 'and has the last error');
	check_others('others go on');
};

subtest 'it arrives corrupt' => sub {
	my $topic = new_topic('corrupt');
	my ($major, $minor) = publisher('librdkafka_version') =~ /^(\d+)\.(\d+)/;

	$mock->push_errors(PRODUCE, 2);
	send_many($topic, 20);
	wait_for_sent($topic, 20);
	is_deeply([ values_of($topic) ], [ 1 .. 20 ], 'INVALID_MSG: SENT, in order');
	unlike(log_since(), qr/"$topic" is held/, 'the topic was not held');

	# From 2.4 on librdkafka sends it again for ever.
	if ($major == 2 && $minor < 4)
	{
		$mock->push_errors(PRODUCE, (2) x 4);
		my $id = send_one($topic, 'bad');
		wait_for_status($id, 'DEAD');
		like( $node->safe_psql('postgres', "SELECT error FROM outbox.message WHERE id = '$id'"),
			qr/^INVALID_MSG: /, 'INVALID_MSG, thrice more alone: DEAD');
	}
	check_others('others go on');
};

subtest 'the topic' => sub {
	my %codes = (
		TOPIC_AUTHORIZATION_FAILED => [ 29, 'denied' ],
		TOPIC_EXCEPTION => [ 17, 'misconfigured' ],
		UNSUPPORTED_COMPRESSION_TYPE => [ 76, 'misconfigured' ],
		INVALID_TIMESTAMP => [ 32, 'misconfigured' ],
		UNKNOWN_TOPIC_OR_PART => [ 3, 'missing' ]);

	foreach my $name (sort keys %codes)
	{
		my ($code, $state) = @{ $codes{$name} };
		my $topic = new_topic($name);

		# in the answer to the request; librdkafka itself asks again if the
		# topic is unknown
		if ($name ne 'UNKNOWN_TOPIC_OR_PART')
		{
			$mock->push_errors(PRODUCE, $code);
			send_many($topic, 20);
			wait_for_sent($topic, 20);
			like(log_since(), qr/topic "$topic" is held: $name: /, "$name: it is held");
			is_deeply([ values_of($topic) ], [ 1 .. 20 ],
				"$name: its messages go out, in order, when it is over");
			wait_for_state($topic, 'ready');
			is( $node->safe_psql('postgres',
					"SELECT DISTINCT attempts, error FROM outbox.message WHERE topic = '$topic'"),
				'1|', "$name: no attempt was counted");
		}

		# in the metadata, which stay so
		$topic = new_topic($name);
		$mock->command("topic_error $topic $code");
		send_many($topic, 3);
		wait_for_state($topic, $state);
		like( $node->safe_psql('postgres', "SELECT error FROM outbox.topic WHERE topic = '$topic'"),
			qr/^$name: /, "$name: outbox.topic says why");
		isnt( $node->safe_psql('postgres', "SELECT hint FROM outbox.topic WHERE topic = '$topic'"),
			'', "$name: and what to do");
		check_others("$name: others go on");
		is( $node->safe_psql('postgres',
				"SELECT DISTINCT status, attempts FROM outbox.message WHERE topic = '$topic'"),
			'NEW|0', "$name: its messages wait");
		$mock->command("topic_error $topic 0");
		wait_for_sent($topic, 3);
		is_deeply([ values_of($topic) ], [ 1 .. 3 ], "$name: and go out when it is over");
	}

	# no leader
	my $topic = new_topic('leaderless');
	$mock->command("leader $topic 0 -1");
	send_many($topic, 3);
	wait_for_state($topic, 'failing');
	like( $node->safe_psql('postgres', "SELECT error FROM outbox.topic WHERE topic = '$topic'"),
		qr/^LEADER_NOT_AVAILABLE: /, 'no leader: outbox.topic says so');
	check_others('no leader: others go on');
	$mock->command("leader $topic 0 1");
	wait_for_sent($topic, 3);
	is_deeply([ values_of($topic) ], [ 1 .. 3 ], 'no leader: and goes on with one');
};

subtest 'what nobody knows' => sub {
	# One that librdkafka has a name for, and one that it has not
	foreach my $code (54, 1234)
	{
		my $topic = new_topic("code-$code");

		$mock->push_errors(PRODUCE, $code);
		send_many($topic, 20);
		wait_for_sent($topic, 20);
		like(log_since(), qr/topic "$topic" is held: \S*(SECURITY_DISABLED|1234)\S*: /,
			"$code: the topic is held");
		is_deeply([ values_of($topic) ], [ 1 .. 20 ], "$code: and goes on, in order");

		# again and again, also when it is tried alone
		$mock->push_errors(PRODUCE, ($code) x 3);
		my $id = send_one($topic, 'x');
		wait_for_status($id, 'SENT');
		is( $node->safe_psql('postgres',
				"SELECT attempts, error FROM outbox.message WHERE id = '$id'"),
			'1|', "$code: never DEAD");
		wait_for_state($topic, 'ready');
	}
	check_others('others go on');
};

subtest 'the client is finished' => sub {
	my %codes = (
		OUT_OF_ORDER_SEQUENCE_NUMBER => 45, INVALID_PRODUCER_EPOCH => 47,
		INVALID_PRODUCER_ID_MAPPING => 49, UNKNOWN_PRODUCER_ID => 59);
	my $before = publisher('bridge_restarts');

	foreach my $name (sort keys %codes)
	{
		my $topic = new_topic($name);

		# Here librdkafka goes on by itself, and counts on the broker to refuse
		# the request behind, which the mock doesn't.
		my $n = $name eq 'UNKNOWN_PRODUCER_ID' ? 1 : 20;

		$mock->push_errors(PRODUCE, $codes{$name});
		send_many($topic, $n);
		wait_for_sent($topic, $n);
		is_deeply([ values_of($topic) ], [ 1 .. $n ], "$name: nothing is lost, in order");
		unlike(log_since(), qr/"$topic" is held/, "$name: the topic was not held");
		check_others("$name: others go on");
	}
	# Some of them librdkafka can live with.
	cmp_ok(publisher('bridge_restarts'), '>=', $before + 2, 'there was a new bridge');
	is(publisher('restarts'), 0, 'and the same worker');
	like(publisher('bridge_last_exit'),
		qr/^stopped after a fatal error of the Kafka client: (OUT_OF_ORDER_SEQUENCE_NUMBER|INVALID_PRODUCER_\w+): /,
		'outbox.worker says why');
	is( $node->safe_psql('postgres', q(SELECT count(*) FROM outbox.message WHERE status = 'DEAD'
			AND topic ~ '^(out_of|invalid_producer|unknown_prod)')),
		0, 'nothing is DEAD');
};

subtest 'a client that is not allowed' => sub {
	my $topic = new_topic('forbidden');
	my $before = publisher('bridge_restarts');

	# it gets no producer's id, and so can't send anything
	$mock->push_errors(INIT_PRODUCER_ID, (31) x 4);
	kill('KILL', publisher('bridge_pid'));
	my $id = send_one($topic, 'x');
	ok( wait_for_value($node, 'postgres', 'SELECT last_error FROM outbox.stat',
			qr/: CLUSTER_AUTHORIZATION_FAILED: /),
		'CLUSTER_AUTHORIZATION_FAILED: outbox.stat says so');
	wait_for_status($id, 'SENT');
	unlike(log_since(), qr/"$topic" is held/, 'the topic was not held');
	cmp_ok(publisher('bridge_restarts'), '>=', $before + 3, 'it was tried again with new bridges');
	my @delays = log_since() =~ /A new one is started in (\d+) ms/g;
	my ($longest) = sort { $b <=> $a } @delays;
	cmp_ok($longest, '>', 2 * $delays[0], "after longer and longer pauses: @delays");
};

subtest 'no acknowledgement in time' => sub {
	my $topic = new_topic('late');

	set_conf($node, 'outbox.ack_timeout' => '1s');
	# a client of 2.3 or later tries again less and less often
	$mock->push_errors(PRODUCE, (19) x 20);
	my $id = send_one($topic, 'x');
	wait_for_state($topic, 'failing');
	is( $node->safe_psql('postgres', "SELECT error FROM outbox.topic WHERE topic = '$topic'"),
		'no acknowledgement within 1000 ms', 'the topic is held');
	is( $node->safe_psql('postgres', "SELECT status, attempts FROM outbox.message WHERE id = '$id'"),
		'NEW|0', 'the message waits');
	wait_for_status($id, 'SENT');
	is(scalar(values_of($topic)), 1, 'and goes out when it is over');
	wait_for_state($topic, 'ready');
	set_conf($node, 'outbox.ack_timeout' => '60s');
	check_others('others go on');
};

subtest 'no broker' => sub {
	my $topic = new_topic('down');

	$mock->down;
	my ($id) = send_many($topic, 1);
	wait_for_value($node, 'postgres',
		q(SELECT NOT brokers_reachable AND brokers_reason <> '' FROM outbox.stat), 't');
	is( $node->safe_psql('postgres', "SELECT status, attempts FROM outbox.message WHERE id = '$id'"),
		'NEW|0', '_ALL_BROKERS_DOWN: it waits');
	$mock->up;
	wait_for_status($id, 'SENT');
	unlike(log_since(), qr/"$topic" is held/, '_ALL_BROKERS_DOWN: the topic was not held');
	is( $node->safe_psql('postgres', 'SELECT brokers_reachable, brokers_reason FROM outbox.stat'),
		't|', '_ALL_BROKERS_DOWN: it goes on');
};

# What is in the way of every message: the settings, and what outbox.stat says
sub check_unreachable
{
	my ($name, $reason, %settings) = @_;
	my $id = send_one('others', $name);

	set_conf($node, %settings);
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok(wait_for_value($node, 'postgres', 'SELECT brokers_reason FROM outbox.stat', $reason), $name);
	my $later = send_one('others', $name);
	is( $node->safe_psql('postgres', "SELECT status, attempts FROM outbox.message WHERE id = '$later'"),
		'NEW|0', "$name: the message waits");
	return $later;
}

$kafka->wait_ready;
$broker = $kafka;
$kafka->create_topic('others', 1);

subtest 'brokers that are not to be talked to' => sub {
	my $secrets = $node->data_dir . '/kafka.secrets';
	my $write = sub {
		append_to_file($secrets, '');
		chmod(0600, $secrets) or die "$secrets: $!";
		open(my $file, '>', $secrets) or die "$secrets: $!";
		print $file "sasl.password=$_[0]\n";
		close($file) or die "$secrets: $!";
	};

	my @ids = check_unreachable('_RESOLVE', qr/no\.such\.host\.invalid.*resolve/i,
		'outbox.bootstrap_servers' => 'no.such.host.invalid:9092');
	# A reason too long to be kept, cut within a character for one of the two
	foreach my $host ("\xc3\xa4" x 100, 'x' . "\xc3\xa4" x 100)
	{
		push @ids, check_unreachable('a long reason', qr/^x?\xc3\xa4.*resolve/i,
			'outbox.bootstrap_servers' => "$host:9092");
		is( $node->safe_psql('postgres', q(SELECT octet_length(brokers_reason) > 240,
				convert_from(textsend(brokers_reason), 'UTF8') = brokers_reason, brokers_reason ~ '[?]'
				FROM outbox.stat)), 't|t|f', 'a long reason: cut between two characters');
	}
	push @ids, check_unreachable('_SSL', qr/SSL_HANDSHAKE/,
		'outbox.bootstrap_servers' => $kafka->bootstrap,
		'outbox.kafka_config' => 'security.protocol=ssl');
	$write->('wrong');
	push @ids, check_unreachable('_AUTHENTICATION', qr/authentication failed/i,
		'outbox.bootstrap_servers' => $kafka->bootstrap_sasl,
		'outbox.kafka_config' => 'security.protocol=sasl_plaintext;sasl.mechanism=PLAIN;sasl.username=outbox',
		'outbox.kafka_secrets_file' => $secrets);
	$write->('outbox-secret');
	set_conf($node);
	wait_for_status($_, 'SENT') foreach (@ids);
	pass('it goes on when the settings are right');
	unlike(slurp_file($node->logfile), qr/outbox-secret|password=wrong/, 'no password is in the log');

	set_conf($node,
		'outbox.bootstrap_servers' => $kafka->bootstrap,
		'outbox.kafka_config' => '');
	check_others('others go on');
};

subtest 'a message too large for its topic' => sub {
	my $topic = new_topic('limited', 'max.message.bytes' => 50_000);

	# Requests are larger than that, and the last one isn't: it must not pass
	# those that go again, alone, whatever it is that fails in them.
	$node->safe_psql('postgres',
		"SELECT count(outbox.send('$topic', format('%s %s', i, repeat('x', CASE i WHEN 30 THEN 60000 ELSE 1000 END)), 'k'))
		 FROM generate_series(1, 110) AS i");
	wait_for_sent($topic, 109);
	is( $node->safe_psql('postgres',
			"SELECT split_part(payload, ' ', 1), status, split_part(error, ':', 1)
			 FROM outbox.message WHERE topic = '$topic' AND status <> 'SENT'"),
		'30|DEAD|MSG_SIZE_TOO_LARGE', 'it alone is DEAD');
	is_deeply([ map { /^(\d+)/ } values_of($topic) ], [ 1 .. 29, 31 .. 110 ],
		'its neighbours are SENT, in order');
	unlike(log_since(), qr/"$topic" is held/, 'the topic was not held');

	# so many that they are still on their way to Kafka's client when it fails
	$topic = new_topic('limited', 'max.message.bytes' => 200_000);
	$node->safe_psql('postgres',
		"SELECT count(outbox.send('$topic', format('%s %s', i, repeat('x', CASE i WHEN 2 THEN 250000 ELSE 1000 END)), 'k'))
		 FROM generate_series(1, 3500) AS i");
	wait_for_sent($topic, 3499);
	is_deeply([ map { /^(\d+)/ } values_of($topic) ], [ 1, 3 .. 3500 ],
		'also in a large batch');
	unlike(log_since(), qr/"$topic" is held/, 'the topic was not held');

	# by our own rules: no broker has a say in that
	set_conf($node, 'outbox.max_message_bytes' => '100MB');
	my $id = $node->safe_psql('postgres',
		"SELECT outbox.send('$topic', repeat('x', 70000000), 'k')");
	send_one($topic, '3501');
	wait_for_status($id, 'DEAD');
	like( $node->safe_psql('postgres', "SELECT error FROM outbox.message WHERE id = '$id'"),
		qr/^MSG_SIZE_TOO_LARGE: /, 'one that the client refuses is DEAD');
	wait_for_sent($topic, 3500);
	is((values_of($topic))[-1], '3501', 'what follows goes out');
	check_others('others go on');
};

subtest 'a topic that is deleted while it is used' => sub {
	my $topic = new_topic('deleted');

	wait_for_status(send_one($topic, 'before'), 'SENT');
	$kafka->delete_topic($topic);
	send_many($topic, 20);
	wait_for_state($topic, 'missing');
	like( $node->safe_psql('postgres', "SELECT error FROM outbox.topic WHERE topic = '$topic'"),
		qr/^_?UNKNOWN_(TOPIC|PARTITION)/, 'it is missing');
	check_others('others go on');
	$kafka->create_topic($topic, 1);
	wait_for_sent($topic, 21);
	is_deeply([ values_of($topic) ], [ 1 .. 20 ], 'made anew, it goes on');
};

is(publisher('restarts'), 0, 'the publisher had to be started once');

$node->stop;
done_testing();
